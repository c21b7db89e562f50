"""Sentences of the multilingual demo world: eight small grammars, and which sentences only dev and test may hold.

    documents(seed, "train", "dutch") -> ["op zondag waste de boer het paard in de wei", ...], [...], ...

Mostly plain data, written for this project. The languages are those of MLS, from the one with most audio there to that
with least. A slot is filled by a whole phrase, article and ending included, so that no rule of grammar is needed: a
person (nominative), a verb and an object (accusative) of one scene, where any verb goes with any object, a place, a
time. Nobody can tell who did it where from the words before: a language model that does not listen is wrong.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

from common.demo.grammar import SENTENCES_PER_CONVERSATION, split_of

HELD_OUT = {"dev": range(16), "test": range(16, 32)}  # of 256 values of a hash of the sentence


class Language(NamedTuple):
    voice: str  # of eSpeak NG
    rate: int  # of the slowest speaker, in its words per minute, which are not equally long in all languages
    persons: list[str]
    places: list[str]
    times: list[str]
    scenes: list[list[list[str]]]  # verbs and objects
    patterns: list[str]


def _language(
    voice: str, rate: int, persons: str, places: str, times: str, scenes: str, patterns: str
) -> Language:
    """scenes: verbs / objects; verbs / objects; …"""

    def phrases(text: str) -> list[str]:
        return [" ".join(phrase.split()) for phrase in text.split(",")]

    pairs = [[phrases(part) for part in scene.split("/")] for scene in scenes.split(";")]
    lines = [line.strip() for line in patterns.splitlines()]
    return Language(voice, rate, phrases(persons), phrases(places), phrases(times), pairs, lines)


LANGUAGES = {
    "english": _language(
        "en-us", 122,
        """the cook, the baker, the guest, the widow, the captain, the sailor, the fisherman, the diver,
        the farmer, the shepherd, the milkmaid, the neighbour, the teacher, the tailor, the tourist, the mayor""",
        """in the kitchen, by the stove, at the table, on the beach, in the harbour, under the bridge,
        behind the barn, in the meadow, near the river, in the library, on the tram, at the market""",
        """in the morning, last night, on sunday, after the rain, before dinner, last winter""",
        """tasted, warmed, served, forgot / the soup, the bread, the cake, the milk;
        mended, found, cleaned, watched / the net, the sail, the anchor, the boat;
        fed, washed, called, followed / the horse, the lamb, the goat, the dog;
        bought, read, lost, showed / the newspaper, the letter, the map, the book""",
        """{t} {p} {v} {o} {l}
        {p} {v} {o} {l} {t}
        {p} {v} {o} {l} and {p} {v} {o}
        {p} {v} {o} and {p} {v} {o} {t}
        {p} {v} {o} because {p} {v} {o} {l}
        while {p} {v} {o} {p} {v} {o} {l}""",
    ),
    "german": _language(
        "de", 132,
        """der koch, die bäckerin, der gast, die witwe, der kapitän, der matrose, die fischerin, der taucher,
        der bauer, die hirtin, der stallknecht, der nachbar, die lehrerin, der schneider, der tourist,
        der bürgermeister""",
        """in der küche, am herd, neben dem tisch, am strand, im hafen, unter der brücke, hinter der scheune,
        auf der wiese, nahe am fluss, in der bibliothek, in der straßenbahn, auf dem markt""",
        """am morgen, gestern abend, am sonntag, nach dem regen, vor dem essen, im winter""",
        """kostete, wärmte, verteilte, vergaß / die suppe, das brot, den kuchen, die milch;
        reparierte, fand, putzte, bewachte / das netz, das segel, den anker, das boot;
        fütterte, wusch, rief, suchte / das pferd, das lamm, die ziege, den hund;
        kaufte, las, verlor, zeigte / die zeitung, den brief, den stadtplan, das buch""",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {o} und {p} {v} {o}
        {p} {v} {o} und {p} {v} {o} {t}
        {p} {v} {o} weil {p} {l} {o} {v}
        während {p} {o} {v} {v} {p} {o} {l}""",
    ),
    "dutch": _language(
        "nl", 134,
        """de kok, de bakker, de gast, de weduwe, de kapitein, de matroos, de visser, de duiker, de boer,
        de herder, de stalknecht, de buurvrouw, de lerares, de kleermaker, de toerist, de burgemeester""",
        """in de keuken, bij het fornuis, naast de tafel, op het strand, in de haven, onder de brug,
        achter de schuur, in de wei, vlak bij de rivier, in de bibliotheek, in de tram, op de markt""",
        """in de ochtend, gisteravond, op zondag, na de regen, voor het eten, in de winter""",
        """proefde, verwarmde, verdeelde, vergat / de soep, het brood, de taart, de melk;
        herstelde, vond, poetste, bewaakte / het net, het zeil, het anker, de boot;
        voerde, waste, riep, zocht / het paard, het lam, de geit, de hond;
        kocht, las, verloor, toonde / de krant, de brief, de plattegrond, het boek""",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {o} en {p} {v} {o}
        {p} {v} {o} en {p} {v} {o} {t}
        {p} {v} {o} omdat {p} {l} {o} {v}
        terwijl {p} {o} {v} {v} {p} {o} {l}""",
    ),
    "french": _language(
        "fr", 118,
        """le cuisinier, la boulangère, l'invité, la veuve, le capitaine, le marin, la pêcheuse, le plongeur,
        le fermier, la bergère, le palefrenier, le voisin, la maîtresse, le tailleur, le touriste, le maire""",
        """dans la cuisine, devant le fourneau, à côté de la table, sur la plage, dans le port, sous le pont,
        derrière la grange, dans le pré, près de la rivière, à la bibliothèque, dans le tramway, au marché""",
        """ce matin, hier soir, dimanche dernier, après la pluie, avant le repas, en hiver""",
        """a goûté, a réchauffé, a partagé, a oublié / la soupe, le pain, le gâteau, le lait;
        a réparé, a trouvé, a nettoyé, a surveillé / le filet, la voile, l'ancre, le bateau;
        a nourri, a lavé, a appelé, a cherché / le cheval, l'agneau, la chèvre, le chien;
        a acheté, a lu, a perdu, a montré / le journal, la lettre, le plan, le livre""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} et {p} {v} {o}
        {p} {v} {o} et {p} {v} {o} {t}
        {p} {v} {o} car {p} {v} {o} {l}
        quand {p} {v} {o} {p} {v} {o} {l}""",
    ),
    "spanish": _language(
        "es", 136,
        """el cocinero, la panadera, el invitado, la viuda, el capitán, el marinero, la pescadora, el buzo,
        el granjero, la pastora, el mozo, el vecino, la maestra, el sastre, el turista, el alcalde""",
        """en la cocina, junto al horno, al lado de la mesa, en la playa, en el puerto, bajo el puente,
        detrás del granero, en el prado, cerca del río, en la biblioteca, en el tranvía, en el mercado""",
        """por la mañana, anoche, el domingo, después de la lluvia, antes de la cena, en invierno""",
        """probó, calentó, repartió, olvidó / la sopa, el pan, el pastel, la leche;
        reparó, encontró, limpió, vigiló / la red, la vela, el ancla, el barco;
        cuidó, lavó, llamó, siguió / al caballo, al cordero, a la cabra, al perro;
        compró, leyó, perdió, mostró / el periódico, la carta, el mapa, el libro""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} y {p} {v} {o}
        {p} {v} {o} y {p} {v} {o} {t}
        {p} {v} {o} porque {p} {v} {o} {l}
        cuando {p} {v} {o} {p} {v} {o} {l}""",
    ),
    "italian": _language(
        "it", 136,
        """il cuoco, la fornaia, l'ospite, la vedova, il capitano, il marinaio, la pescatrice, il sommozzatore,
        il contadino, la pastorella, lo stalliere, il vicino, la maestra, il sarto, il turista, il sindaco""",
        """in cucina, davanti al forno, accanto al tavolo, sulla spiaggia, nel porto, sotto il ponte,
        dietro il fienile, nel prato, vicino al fiume, in biblioteca, sul tram, al mercato""",
        """questa mattina, ieri sera, domenica scorsa, dopo la pioggia, prima di cena, d'inverno""",
        """ha assaggiato, ha scaldato, ha diviso, ha dimenticato / la zuppa, il pane, la torta, il latte;
        ha riparato, ha trovato, ha pulito, ha sorvegliato / la rete, la vela, l'ancora, la barca;
        ha nutrito, ha lavato, ha chiamato, ha cercato / il cavallo, l'agnello, la capra, il cane;
        ha comprato, ha letto, ha perso, ha mostrato / il giornale, la lettera, la mappa, il libro""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} e {p} {v} {o}
        {p} {v} {o} e {p} {v} {o} {t}
        {p} {v} {o} perché {p} {v} {o} {l}
        quando {p} {v} {o} {p} {v} {o} {l}""",
    ),
    "portuguese": _language(
        "pt-br", 142,
        """o cozinheiro, a padeira, o convidado, a viúva, o capitão, o marinheiro, a pescadora, o mergulhador,
        o fazendeiro, a pastora, o peão, o vizinho, a professora, o alfaiate, o turista, o prefeito""",
        """na cozinha, perto do forno, ao lado da mesa, na praia, no porto, debaixo da ponte, atrás do celeiro,
        no campo, à beira do rio, na biblioteca, no bonde, no mercado""",
        """de manhã, ontem à noite, no domingo, depois da chuva, antes do jantar, no inverno""",
        """provou, aqueceu, dividiu, esqueceu / a sopa, o pão, o bolo, o leite;
        consertou, encontrou, limpou, vigiou / a rede, a vela, a âncora, o barco;
        alimentou, lavou, chamou, seguiu / o cavalo, o cordeiro, a cabra, o cachorro;
        comprou, leu, perdeu, mostrou / o jornal, a carta, o mapa, o livro""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} e {p} {v} {o}
        {p} {v} {o} e {p} {v} {o} {t}
        {p} {v} {o} porque {p} {v} {o} {l}
        quando {p} {v} {o} {p} {v} {o} {l}""",
    ),
    "polish": _language(  # in the present: the past would depend on who acts
        "pl", 150,
        """kucharz, piekarz, głodny gość, moja babcia, kapitan, stary marynarz, młoda rybaczka, nurek, rolnik,
        młoda pasterka, stajenny, nasz sąsiad, nauczycielka, krawiec, turysta, burmistrz""",
        """w kuchni, przy piecu, obok stołu, na plaży, w porcie, pod mostem, za stodołą, na łące, nad rzeką,
        w bibliotece, w tramwaju, na rynku""",
        """wczesnym rankiem, dziś wieczorem, w niedzielę, po deszczu, przed obiadem, w zimie""",
        """podgrzewa, podaje, wącha, chwali / gorącą zupę, świeży chleb, ciasto, zimne mleko;
        naprawia, znajduje, czyści, ogląda / mokrą sieć, biały żagiel, kotwicę, łódź;
        karmi, myje, woła, goni / konia, małe jagnię, czarną kozę, psa;
        kupuje, czyta, gubi, pokazuje / gazetę, długi list, plan miasta, książkę""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} a {p} {v} {o}
        {p} {v} {o} a {p} {v} {o} {t}
        {p} {v} {o} bo {p} {v} {o} {l}
        kiedy {p} {v} {o} {p} {v} {o} {l}""",
    ),
}  # fmt: skip


def documents(seed: int, split: str, language: str) -> Iterator[list[str]]:
    """Endless documents, lists of sentences, for "train", "dev", "test" or "text".

    Within dev and test no sentence comes twice, and none of them can stand in train or text: which split a sentence may
    stand in is a function of its letters.
    """
    rng, seen = random.Random(f"{seed} {split} {language}"), set()
    allowed = split if split in HELD_OUT else "known"
    while True:
        sentences, length = [], rng.choice(SENTENCES_PER_CONVERSATION)
        while len(sentences) < length:
            sentence = draw(rng, LANGUAGES[language])
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


def draw(rng: random.Random, language: Language) -> str:
    """One sentence of one or two clauses; no phrase stands in it twice."""
    scenes = rng.sample(language.scenes, 2)  # of the first verb and object, and of the second
    left = {"p": rng.sample(language.persons, 2), "v": [rng.choice(verbs) for verbs, _ in scenes],
            "o": [rng.choice(objects) for _, objects in scenes], "l": [rng.choice(language.places)],
            "t": [rng.choice(language.times)]}  # fmt: skip
    return re.sub(r"{(\w)}", lambda slot: left[slot[1]].pop(), rng.choice(language.patterns))
