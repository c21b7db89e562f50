"""Sentences of the multilingual demo world: eight small grammars, and which sentences only dev and test may hold.

    documents(seed, "train", "dutch") -> ["op zondag waste de boer het bruine paard in de wei", ...], [...], ...

Mostly plain data, written for this project. The languages are those of MLS, from the one with most audio there to that
with least. A slot is filled by a whole phrase, article and ending included, so that no rule of grammar is needed: a
person (nominative), a verb (one that any person and any object of its scene can have), an object (accusative), a place,
and a time, which belongs to no scene. A document stays in its scene: the words around tell what is likely.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from common.demo.grammar import SENTENCES_PER_CONVERSATION, split_of

HELD_OUT = {"dev": range(16), "test": range(16, 32)}  # of 256 values of a hash of the sentence
SLOTS = "pvolt"  # person, verb, object, place, time


class Language(NamedTuple):
    voice: str  # of eSpeak NG
    rate: int  # of the slowest speaker, in its words per minute, which are not equally long in all languages
    scenes: list[dict[str, list[str]]]  # slot -> phrases
    patterns: list[str]


def _language(voice: str, rate: int, scenes: str, times: str, patterns: str) -> Language:
    """scenes: persons, … / verbs, … / objects, … / places, …; the same of the next scene; …"""
    rows = [[*scene.split("/"), times] for scene in scenes.split(";")]
    phrases = [[[" ".join(phrase.split()) for phrase in part.split(",")] for part in row] for row in rows]
    lines = [line.strip() for line in patterns.splitlines()]
    return Language(voice, rate, [dict(zip(SLOTS, row, strict=True)) for row in phrases], lines)


LANGUAGES = {
    "english": _language(
        "en-us", 122,
        """the cook, the baker, the hungry guest, my grandmother /
        tasted, warmed, served, forgot /
        the onion soup, the fresh bread, a plum cake, the cold milk /
        in the kitchen, at the stove, beside the big table;
        the captain, the old sailor, a young fisherman, the diver /
        mended, found, cleaned, watched /
        the wet net, the white sail, the heavy anchor, a wooden boat /
        on the beach, in the harbour, under the bridge;
        the farmer, the shepherd, the stable boy, our neighbour /
        fed, washed, called, followed /
        the brown horse, a little lamb, the black goat, the lazy dog /
        behind the barn, in the meadow, near the river;
        the teacher, the tailor, a tourist, the mayor /
        bought, read, lost, showed /
        the newspaper, a long letter, the city map, the yellow book /
        in the library, on the tram, at the market""",
        "in the morning, last night, on sunday, after the rain, before dinner",
        """{t} {p} {v} {o} {l}
        {p} {v} {o} {l} {t}
        it was {p} who {v} {o} {l}
        {p} {v} {o} and {p} {v} {o}
        {p} {v} {o} because {p} {v} {o}
        while {p} {v} {o} {p} {v} {o}""",
    ),
    "german": _language(
        "de", 132,
        """der koch, die bäckerin, der hungrige gast, meine großmutter /
        kostete, wärmte, verteilte, vergaß /
        die zwiebelsuppe, das frische brot, einen pflaumenkuchen, die kalte milch /
        in der küche, am herd, neben dem großen tisch;
        der kapitän, der alte matrose, eine junge fischerin, der taucher /
        reparierte, fand, putzte, bewachte /
        das nasse netz, das weiße segel, den schweren anker, ein hölzernes boot /
        am strand, im hafen, unter der brücke;
        der bauer, die hirtin, der stallknecht, unser nachbar /
        fütterte, wusch, rief, suchte /
        das braune pferd, ein kleines lamm, die schwarze ziege, den faulen hund /
        hinter der scheune, auf der wiese, nahe am fluss;
        die lehrerin, der schneider, ein tourist, der bürgermeister /
        kaufte, las, verlor, zeigte /
        die zeitung, einen langen brief, den stadtplan, das gelbe buch /
        in der bibliothek, in der straßenbahn, auf dem markt""",
        "am morgen, gestern abend, am sonntag, nach dem regen, vor dem essen",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {t} {o}
        {p} {v} {o} und {p} {v} {o}
        {p} {v} {o} weil {p} {o} {v}
        während {p} {o} {v} {v} {p} {o}""",
    ),
    "dutch": _language(
        "nl", 134,
        """de kok, de bakker, de hongerige gast, mijn grootmoeder /
        proefde, verwarmde, verdeelde, vergat /
        de uiensoep, het verse brood, een pruimentaart, de koude melk /
        in de keuken, bij het fornuis, naast de grote tafel;
        de kapitein, de oude matroos, een jonge visser, de duiker /
        herstelde, vond, poetste, bewaakte /
        het natte net, het witte zeil, het zware anker, een houten boot /
        op het strand, in de haven, onder de brug;
        de boer, de herder, de stalknecht, onze buurvrouw /
        voerde, waste, riep, zocht /
        het bruine paard, een klein lam, de zwarte geit, de luie hond /
        achter de schuur, in de wei, vlak bij de rivier;
        de lerares, de kleermaker, een toerist, de burgemeester /
        kocht, las, verloor, toonde /
        de krant, een lange brief, de plattegrond, het gele boek /
        in de bibliotheek, in de tram, op de markt""",
        "in de ochtend, gisteravond, op zondag, na de regen, voor het eten",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {t} {o}
        {p} {v} {o} en {p} {v} {o}
        {p} {v} {o} omdat {p} {o} {v}
        terwijl {p} {o} {v} {v} {p} {o}""",
    ),
    "french": _language(
        "fr", 118,
        """le cuisinier, la boulangère, l'invité affamé, ma tante /
        a goûté, a réchauffé, a partagé, a oublié /
        la soupe à l'oignon, le pain frais, un gâteau aux prunes, le lait froid /
        dans la cuisine, devant le fourneau, à côté de la grande table;
        le capitaine, le vieux marin, une jeune pêcheuse, le plongeur /
        a réparé, a trouvé, a nettoyé, a surveillé /
        le filet mouillé, la voile blanche, l'ancre lourde, un bateau en bois /
        sur la plage, dans le port, sous le pont;
        le fermier, la bergère, le palefrenier, notre voisin /
        a nourri, a lavé, a appelé, a cherché /
        le cheval brun, un petit agneau, la chèvre noire, le chien paresseux /
        derrière la grange, dans le pré, près de la rivière;
        la maîtresse, le tailleur, un touriste, le maire /
        a acheté, a lu, a perdu, a montré /
        le journal, une longue lettre, le plan de la ville, le livre jaune /
        à la bibliothèque, dans le tramway, au marché""",
        "ce matin, hier soir, dimanche dernier, après la pluie, avant le repas",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        c'est {p} qui {v} {o} {l}
        {p} {v} {o} et {p} {v} {o}
        {p} {v} {o} car {p} {v} {o}
        quand {p} {v} {o} {p} {v} {o}""",
    ),
    "spanish": _language(
        "es", 136,
        """el cocinero, la panadera, el invitado hambriento, mi abuela /
        probó, calentó, repartió, olvidó /
        la sopa de cebolla, el pan fresco, un pastel de ciruelas, la leche fría /
        en la cocina, junto al horno, al lado de la mesa grande;
        el capitán, el viejo marinero, una joven pescadora, el buzo /
        reparó, encontró, limpió, vigiló /
        la red mojada, la vela blanca, el ancla pesada, un barco de madera /
        en la playa, en el puerto, bajo el puente;
        el granjero, la pastora, el mozo de cuadra, nuestro vecino /
        cuidó, lavó, llamó, siguió /
        al caballo marrón, a un cordero pequeño, a la cabra negra, al perro perezoso /
        detrás del granero, en el prado, cerca del río;
        la maestra, el sastre, un turista, el alcalde /
        compró, leyó, perdió, mostró /
        el periódico, una carta larga, el mapa de la ciudad, el libro amarillo /
        en la biblioteca, en el tranvía, en el mercado""",
        "por la mañana, anoche, el domingo, después de la lluvia, antes de la cena",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        fue {p} quien {v} {o} {l}
        {p} {v} {o} y {p} {v} {o}
        {p} {v} {o} porque {p} {v} {o}
        cuando {p} {v} {o} {p} {v} {o}""",
    ),
    "italian": _language(
        "it", 136,
        """il cuoco, la fornaia, l'ospite affamato, mia nonna /
        ha assaggiato, ha scaldato, ha diviso, ha dimenticato /
        la zuppa di cipolle, il pane fresco, una torta di prugne, il latte freddo /
        in cucina, davanti al forno, accanto al grande tavolo;
        il capitano, il vecchio marinaio, una giovane pescatrice, il sommozzatore /
        ha riparato, ha trovato, ha pulito, ha sorvegliato /
        la rete bagnata, la vela bianca, l'ancora pesante, una barca di legno /
        sulla spiaggia, nel porto, sotto il ponte;
        il contadino, la pastorella, lo stalliere, il nostro vicino /
        ha nutrito, ha lavato, ha chiamato, ha cercato /
        il cavallo marrone, un piccolo agnello, la capra nera, il cane pigro /
        dietro il fienile, nel prato, vicino al fiume;
        la maestra, il sarto, un turista, il sindaco /
        ha comprato, ha letto, ha perso, ha mostrato /
        il giornale, una lunga lettera, la mappa della città, il libro giallo /
        in biblioteca, sul tram, al mercato""",
        "questa mattina, ieri sera, domenica scorsa, dopo la pioggia, prima di cena",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        è {p} che {v} {o} {l}
        {p} {v} {o} e {p} {v} {o}
        {p} {v} {o} perché {p} {v} {o}
        quando {p} {v} {o} {p} {v} {o}""",
    ),
    "portuguese": _language(
        "pt-br", 142,
        """o cozinheiro, a padeira, o convidado faminto, minha avó /
        provou, aqueceu, dividiu, esqueceu /
        a sopa de cebola, o pão fresco, um bolo de ameixa, o leite frio /
        na cozinha, perto do forno, ao lado da mesa grande;
        o capitão, o velho marinheiro, uma jovem pescadora, o mergulhador /
        consertou, encontrou, limpou, vigiou /
        a rede molhada, a vela branca, a âncora pesada, um barco de madeira /
        na praia, no porto, debaixo da ponte;
        o fazendeiro, a pastora, o rapaz do estábulo, nosso vizinho /
        alimentou, lavou, chamou, seguiu /
        o cavalo marrom, um pequeno cordeiro, a cabra preta, o cachorro preguiçoso /
        atrás do celeiro, no campo, à beira do rio;
        a professora, o alfaiate, um turista, o prefeito /
        comprou, leu, perdeu, mostrou /
        o jornal, uma carta longa, o mapa da cidade, o livro amarelo /
        na biblioteca, no bonde, no mercado""",
        "de manhã, ontem à noite, no domingo, depois da chuva, antes do jantar",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        foi {p} que {v} {o} {l}
        {p} {v} {o} e {p} {v} {o}
        {p} {v} {o} porque {p} {v} {o}
        quando {p} {v} {o} {p} {v} {o}""",
    ),
    "polish": _language(  # in the present: the past would depend on who acts
        "pl", 150,
        """kucharz, piekarz, głodny gość, moja babcia /
        podgrzewa, podaje, wącha, chwali /
        zupę cebulową, świeży chleb, ciasto ze śliwkami, zimne mleko /
        w kuchni, przy piecu, obok dużego stołu;
        kapitan, stary marynarz, młoda rybaczka, nurek /
        naprawia, znajduje, czyści, ogląda /
        mokrą sieć, biały żagiel, ciężką kotwicę, drewnianą łódź /
        na plaży, w porcie, pod mostem;
        rolnik, młoda pasterka, stajenny, nasz sąsiad /
        karmi, myje, woła, goni /
        brązowego konia, małe jagnię, czarną kozę, leniwego psa /
        za stodołą, na łące, nad rzeką;
        nauczycielka, krawiec, ciekawy turysta, burmistrz /
        kupuje, czyta, gubi, pokazuje /
        poranną gazetę, długi list, plan miasta, żółtą książkę /
        w bibliotece, w tramwaju, na rynku""",
        "wczesnym rankiem, dziś wieczorem, w niedzielę, po deszczu, przed obiadem",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {o} {v} {p} {l} {t}
        {p} {v} {o} {l} a {p} {v} {o}
        {p} {v} {o} {t} bo {p} {v} {o}
        kiedy {p} {v} {o} {p} {v} {o} {l}""",
    ),
}  # fmt: skip


def documents(seed: int, split: str, language: str) -> Iterator[list[str]]:
    """Endless documents, lists of sentences of one scene, for "train", "dev", "test" or "text".

    Within dev and test no sentence comes twice, and none of them can stand in train or text: which split a sentence may
    stand in is a function of its letters.
    """
    rng, seen = random.Random(f"{seed} {split} {language}"), set()
    allowed = split if split in HELD_OUT else "known"
    while True:
        scene, sentences, length = rng.choice(LANGUAGES[language].scenes), [], rng.choice(SENTENCES_PER_CONVERSATION)
        while len(sentences) < length:
            sentence = draw(rng, scene, rng.choice(LANGUAGES[language].patterns))
            if split_of(sentence, HELD_OUT) == allowed and sentence not in seen:
                sentences.append(sentence)
                seen |= {sentence} if split in HELD_OUT else set()
        yield sentences


def take(seed: int, split: str, language: str, count: int) -> list[list[str]]:
    """The first documents, the last one cut so that there are `count` sentences."""
    taken = []
    for sentences in documents(seed, split, language):
        taken.append(sentences[:count])
        count -= len(taken[-1])
        if not count:
            return taken


def draw(rng: random.Random, scene: dict[str, list[str]], pattern: str) -> str:
    """One sentence; no phrase stands in it twice."""
    left = {slot: rng.sample(phrases, len(phrases)) for slot, phrases in scene.items()}
    return re.sub(r"{(\w)}", lambda slot: left[slot[1]].pop(), pattern)
