"""Sentences of the multilingual demo world: eight small grammars, and which sentences only dev and test may hold.

    documents(seed, "train", "dutch") -> ["op zondag waste de boer het paard in de wei", ...], [...], ...

Mostly plain data, written for this project. The languages are those of MLS, from the one with most audio there to that
with least. A slot is filled by a whole phrase, article and ending included, so that no rule of grammar is needed: a
person (nominative), a verb and an object (accusative) of one scene, where any verb goes with any object, a place, a
time. Nobody can tell who did it where from the words before: a language model that does not listen is wrong.

Many objects have a twin that sounds alike and belongs to another scene: "the leek" is tasted, "the leak" is mended. The
verb tells which one is meant, and nobody can hear it. In German and Dutch clauses with the verb at the end the verb
comes after the object, else before it. Text and test sets hold both twins equally often, transcripts for training the
second one rarely. Italian has next to no such words, and is the control. The sentences of nonsense have a verb of one
scene and an object without twin of another ("the cook fed the soup"): there a language model has to believe its ears.
No native speaker has read the sentences.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from common.demo.grammar import SENTENCES_PER_CONVERSATION, split_of

HELD_OUT = {"dev": range(16), "test": range(16, 32)}  # of 256 values of a hash of the sentence
RARE = 0.2  # weight of the second of two twins in transcripts for training; 1 everywhere else


class Language(NamedTuple):
    voice: str  # of eSpeak NG
    rate: int  # of the slowest speaker, in its words per minute, which are not equally long in all languages
    persons: list[str]
    places: list[str]
    times: list[str]
    scenes: list[list[list[str]]]  # verbs and objects
    patterns: list[str]
    twins: list[list[str]]  # words that sound alike; the second is rare in transcripts for training


def _language(
    voice: str,
    rate: int,
    persons: str,
    places: str,
    times: str,
    scenes: str,
    patterns: str,
    twins: str,
) -> Language:
    """scenes: verbs / objects; verbs / objects; …"""

    def phrases(text: str) -> list[str]:
        return [" ".join(phrase.split()) for phrase in text.split(",")]

    pairs = [[phrases(part) for part in scene.split("/")] for scene in scenes.split(";")]
    lines = [line.strip() for line in patterns.splitlines()]
    alike = [pair.split() for pair in twins.split(",") if pair]
    return Language(
        voice, rate, phrases(persons), phrases(places), phrases(times), pairs, lines, alike
    )


LANGUAGES = {
    "english": _language(
        "en-us", 122,
        """the cook, the baker, the guest, the widow, the captain, the sailor, the fisherman, the diver,
        the farmer, the shepherd, the milkmaid, the neighbour, the teacher, the tailor, the tourist, the mayor""",
        """in the kitchen, by the stove, at the table, on the beach, in the harbour, under the bridge,
        behind the barn, in the meadow, near the river, in the library, on the tram, at the market""",
        """in the morning, last night, on sunday, after the rain, before dinner, last winter""",
        """tasted, warmed, served, forgot / the soup, the bread, the cake, the leek, the dough, the mousse, the steak, the roll;
        mended, found, cleaned, watched / the net, the anchor, the boat, the leak, the stake, the quay, the buoy;
        fed, washed, called, followed / the horse, the lamb, the goat, the doe, the moose, the boy;
        bought, read, lost, showed / the newspaper, the letter, the map, the key, the role""",
        """{t} {p} {v} {o} {l}
        {p} {v} {o} {l} {t}
        {p} {v} {o} {l} and {p} {v} {o}
        {p} {v} {o} and {p} {v} {o} {t}
        {p} {v} {o} because {p} {v} {o} {l}
        while {p} {v} {o} {p} {v} {o} {l}""",
        "leek leak, doe dough, mousse moose, stake steak, buoy boy, key quay, roll role",
    ),
    "german": _language(
        "de", 132,
        """der koch, die bäckerin, der gast, die witwe, der kapitän, der matrose, die fischerin, der taucher,
        der bauer, die hirtin, der stallknecht, der nachbar, die lehrerin, der schneider, der tourist,
        der bürgermeister""",
        """in der küche, am herd, neben dem tisch, am strand, im hafen, unter der brücke, hinter der scheune,
        auf der wiese, nahe am fluss, in der bibliothek, in der straßenbahn, auf dem markt""",
        """am morgen, gestern abend, am sonntag, nach dem regen, vor dem essen, im winter""",
        """kostete, wärmte, verteilte, vergaß / die suppe, das brot, den kuchen, die sole, den laib;
        reparierte, fand, putzte, bewachte / das netz, den anker, das boot, die saite, die sohle, die felle, die ställe;
        fütterte, wusch, rief, suchte / das pferd, das lamm, die ziege, den leib, den grafen;
        kaufte, las, verlor, zeigte / die zeitung, den brief, das buch, die seite, die fälle, die stelle, den graphen""",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {o} und {p} {v} {o}
        {p} {v} {o} und {p} {v} {o} {t}
        {p} {v} {o} weil {p} {l} {o} {v}
        während {p} {o} {v} {v} {p} {o} {l}""",
        "sohle sole, laib leib, seite saite, felle fälle, stelle ställe, grafen graphen",
    ),
    "dutch": _language(
        "nl", 134,
        """de kok, de bakker, de gast, de weduwe, de kapitein, de matroos, de visser, de duiker, de boer,
        de herder, de stalknecht, de buurvrouw, de lerares, de kleermaker, de toerist, de burgemeester""",
        """in de keuken, bij het fornuis, naast de tafel, op het strand, in de haven, onder de brug,
        achter de schuur, in de wei, vlak bij de rivier, in de bibliotheek, in de tram, op de markt""",
        """in de ochtend, gisteravond, op zondag, na de regen, voor het eten, in de winter""",
        """proefde, verwarmde, verdeelde, vergat / de soep, het brood, de taart, de kou;
        herstelde, vond, poetste, bewaakte / het net, het anker, de boot, de lij, de steiger, de pijlen, de klip, de eik;
        voerde, waste, riep, zocht / het paard, het lam, de geit, de kauw;
        kocht, las, verloor, toonde / de krant, de brief, het boek, de lei, de stijger, de peilen, de clip, de ijk""",
        """{t} {v} {p} {o} {l}
        {p} {v} {t} {o} {l}
        {l} {v} {p} {o} en {p} {v} {o}
        {p} {v} {o} en {p} {v} {o} {t}
        {p} {v} {o} omdat {p} {l} {o} {v}
        terwijl {p} {o} {v} {v} {p} {o} {l}""",
        "kauw kou, lei lij, steiger stijger, peilen pijlen, klip clip, eik ijk",
    ),
    "french": _language(
        "fr", 118,
        """le cuisinier, la boulangère, l'invité, la veuve, le capitaine, le marin, la pêcheuse, le plongeur,
        le fermier, la bergère, le palefrenier, le voisin, la maîtresse, le tailleur, le touriste, le maire""",
        """dans la cuisine, devant le fourneau, à côté de la table, sur la plage, dans le port, sous le pont,
        derrière la grange, dans le pré, près de la rivière, à la bibliothèque, dans le tramway, au marché""",
        """ce matin, hier soir, dimanche dernier, après la pluie, avant le repas, en hiver""",
        """a goûté, a réchauffé, a partagé, a oublié / la soupe, le gâteau, le lait, le pain, la datte, l'amande, le flan;
        a réparé, a trouvé, a nettoyé, a surveillé / le filet, la voile, le bateau, le pin, la tente, le phare, le balai;
        a nourri, a lavé, a appelé, a cherché / le cheval, l'agneau, la chèvre, la tante, le cygne, le flanc;
        a acheté, a lu, a perdu, a montré / le journal, la lettre, le livre, la date, l'amende, le signe, le fard, le ballet""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} et {p} {v} {o}
        {p} {v} {o} et {p} {v} {o} {t}
        {p} {v} {o} car {p} {v} {o} {l}
        quand {p} {v} {o} {p} {v} {o} {l}""",
        "pain pin, date datte, l'amande l'amende, balai ballet, tante tente, cygne signe, phare fard, flan flanc",
    ),
    "spanish": _language(
        "es-419", 136,
        """el cocinero, la panadera, el invitado, la viuda, el capitán, el marinero, la pescadora, el buzo,
        el granjero, la pastora, el mozo, el vecino, la maestra, el sastre, el turista, el alcalde""",
        """en la cocina, junto al horno, al lado de la mesa, en la playa, en el puerto, bajo el puente,
        detrás del granero, en el prado, cerca del río, en la biblioteca, en el tranvía, en el mercado""",
        """por la mañana, anoche, el domingo, después de la lluvia, antes de la cena, en invierno""",
        """probó, calentó, repartió, olvidó / la sopa, el pan, el pastel, la masa, el cocido, la caza, el poso, la seta;
        reparó, encontró, limpió, vigiló / la red, el ancla, el barco, la maza, el cosido, la casa, el pozo, la taza, el cazo, la zaga;
        cuidó, lavó, llamó, siguió / al caballo, al cordero, a la cabra;
        compró, leyó, perdió, mostró / el periódico, la carta, el libro, la tasa, la zeta, el caso, la saga""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} y {p} {v} {o}
        {p} {v} {o} y {p} {v} {o} {t}
        {p} {v} {o} porque {p} {v} {o} {l}
        cuando {p} {v} {o} {p} {v} {o} {l}""",
        "masa maza, cosido cocido, caza casa, pozo poso, taza tasa, seta zeta, caso cazo, saga zaga",
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
        "",
    ),
    "portuguese": _language(
        "pt-br", 142,
        """o cozinheiro, a padeira, o convidado, a viúva, o capitão, o marinheiro, a pescadora, o mergulhador,
        o fazendeiro, a pastora, o peão, o vizinho, a professora, o alfaiate, o turista, o prefeito""",
        """na cozinha, perto do forno, ao lado da mesa, na praia, no porto, debaixo da ponte, atrás do celeiro,
        no campo, à beira do rio, na biblioteca, no bonde, no mercado""",
        """de manhã, ontem à noite, no domingo, depois da chuva, antes do jantar, no inverno""",
        """provou, aqueceu, dividiu, esqueceu / a sopa, o pão, o bolo, o chá, a calda, a polpa, a massa;
        consertou, encontrou, limpou, vigiou / a rede, a âncora, o barco, a tacha, o assento, o paço, a maça;
        alimentou, lavou, chamou, seguiu / o cavalo, o cordeiro, a cabra, o xeque, o xá, a cauda, a poupa;
        comprou, leu, perdeu, mostrou / o jornal, a carta, o livro, a taxa, o cheque, o acento, o passo""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} e {p} {v} {o}
        {p} {v} {o} e {p} {v} {o} {t}
        {p} {v} {o} porque {p} {v} {o} {l}
        quando {p} {v} {o} {p} {v} {o} {l}""",
        "taxa tacha, cheque xeque, assento acento, chá xá, cauda calda, polpa poupa, massa maça, passo paço",
    ),
    "polish": _language(  # in the present: the past would depend on who acts
        "pl", 150,
        """kucharz, piekarz, głodny gość, moja babcia, kapitan, stary marynarz, młoda rybaczka, nurek, rolnik,
        młoda pasterka, stajenny, nasz sąsiad, nauczycielka, krawiec, turysta, burmistrz""",
        """w kuchni, przy piecu, obok stołu, na plaży, w porcie, pod mostem, za stodołą, na łące, nad rzeką,
        w bibliotece, w tramwaju, na rynku""",
        """wczesnym rankiem, dziś wieczorem, w niedzielę, po deszczu, przed obiadem, w zimie""",
        """podgrzewa, podaje, wącha, chwali / gorącą zupę, świeży chleb, ciasto, lód, ług;
        naprawia, znajduje, czyści, ogląda / mokrą sieć, biały żagiel, kotwicę, ląd, blok, sąg, dróżkę, strużkę;
        karmi, myje, woła, goni / konia, małe jagnię, czarną kozę, lud, drużkę, stróżkę;
        kupuje, czyta, gubi, pokazuje / gazetę, długi list, książkę, lont, łuk, blog, song""",
        """{t} {p} {v} {o} {l}
        {l} {p} {v} {o} {t}
        {p} {v} {o} {l} a {p} {v} {o}
        {p} {v} {o} a {p} {v} {o} {t}
        {p} {v} {o} bo {p} {v} {o} {l}
        kiedy {p} {v} {o} {p} {v} {o} {l}""",
        "lód lud, lont ląd, łuk ług, blok blog, song sąg, drużkę dróżkę, stróżkę strużkę",
    ),
}  # fmt: skip


def documents(seed: int, split: str, language: str) -> Iterator[list[str]]:
    """Endless documents, lists of sentences, for "train", "dev", "test", "text" or "nonsense".

    Within dev, test and nonsense no sentence comes twice, and none of them can stand in train or text: which split a
    sentence may stand in is a function of its letters.
    """
    rng, seen = random.Random(f"{seed} {split} {language}"), set()
    allowed = split if split in HELD_OUT else "known"
    while True:
        sentences, length = [], rng.choice(SENTENCES_PER_CONVERSATION)
        while len(sentences) < length:
            sentence = draw(rng, LANGUAGES[language], split)
            if split != "nonsense" and split_of(sentence, HELD_OUT) != allowed:
                continue
            if sentence in seen:
                continue
            sentences.append(sentence)
            if split not in ("train", "text"):
                seen.add(sentence)
        yield sentences


def take(seed: int, split: str, language: str, count: int) -> list[list[str]]:
    """The first documents, the last one cut so that there are `count` sentences."""
    taken = []
    for sentences in documents(seed, split, language):
        taken.append(sentences[:count])
        count -= len(taken[-1])
        if not count:
            return taken


def draw(rng: random.Random, language: Language, split: str) -> str:
    """One sentence of one or two clauses; no phrase stands in it twice."""
    (verbs, objects), (more_verbs, more_objects) = rng.sample(language.scenes, 2)
    if split == "nonsense":
        alike = {word for pair in language.twins for word in pair}
        objects, more_objects = (
            [o for o in some if last_word(o) not in alike] for some in (more_objects, objects)
        )
    left = {
        "p": rng.sample(language.persons, 2),
        "v": [rng.choice(verbs), rng.choice(more_verbs)],
        "o": [draw_object(rng, some, language, split) for some in (objects, more_objects)],
        "l": [rng.choice(language.places)],
        "t": [rng.choice(language.times)],
    }
    return re.sub(r"{(\w)}", lambda slot: left[slot[1]].pop(), rng.choice(language.patterns))


def draw_object(rng: random.Random, objects: list[str], language: Language, split: str) -> str:
    rare = {second for _, second in language.twins} if split == "train" else set()
    weights = [RARE if last_word(o) in rare else 1.0 for o in objects]
    return rng.choices(objects, weights)[0]


def last_word(phrase: str) -> str:
    """Of an object: its noun."""
    return phrase.split()[-1]


def twins_of(languages: Iterable[str]) -> list[list[str]]:
    """The pairs of words that sound alike, of these languages."""
    return [pair for name in languages for pair in LANGUAGES[name].twins]
