"""The demo worlds: small corpora in standard formats, and small pretrained models for them.

Everything is built on first use and follows from a seed, so that no script knows about the
demo. Nothing of this package is imported before a demo is asked for.

    english.py        speech whose homophones only the words around can tell apart
    spontaneous.py    the same speakers as people talk: another domain
    multilingual.py   the eight languages of Multilingual LibriSpeech
    models.py         the pretrained models of these worlds, by name

Below them: words.py and languages.py (plain data), grammar.py (sentences), vocabulary.py
(WordPiece), speakers.py (voices), speech.py (eSpeak NG, in a process of its own), building.py
(whole subsets or none), pretraining.py, gpt.py, llama.py and hubert.py (training).

    python -m common.demo --hours 1.8 --out data/demo
"""
