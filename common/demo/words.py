"""The words of the demo world: ten scenes, their cue words, the homophones, and the sentence patterns.

Plain data. Every cue word belongs to one scene alone, so any of them tells where a conversation takes place. Each
homophone belongs to two scenes, its twin to two others: only the cues of the sentence (or of its conversation) decide.
`tests/test_demo.py` proves with eSpeak NG's own phonemes that every pair sounds alike in whole sentences, for every
accent used. All words and patterns were written for this project.
"""

# scene: people / verbs (past, without object) / places / adjectives
SCENES = {
    "harbour": """captain pirate diver skipper angler rower surfer / floated drifted paddled fished coasted /
        pier dock marina ferry wharf canal delta / salty sandy stormy tidal coastal""",
    "market": """broker grocer tailor banker trader vendor dealer / dealt shopped traded bid spent /
        market counter shop stall bank plaza outlet / cheap costly rich frugal fancy""",
    "kitchen": """cook baker waiter butcher chef caterer hostess / baked tasted roasted grated melted /
        kitchen oven pantry stove tavern larder diner / hungry spicy tender sticky crispy""",
    "farm": """farmer sower drover cowboy milker grower herder / planted watered reaped weeded raked /
        barn orchard stable hedge pasture garden silo / ripe dusty rural green lazy""",
    "castle": """king queen baron jester archer lancer squire / ruled jousted plotted fought charged /
        castle tower palace chapel dungeon terrace manor / noble brave cruel gallant royal""",
    "school": """teacher pupil student tutor novice scholar mentor / studied spelled taught copied revised /
        school library college gym desk campus seminar / clever bright eager shy honest""",
    "hospital": """doctor nurse surgeon dentist medic chemist patient / coughed limped fainted rested healed /
        lab clinic ward hospice bunk cot couch / sick ill numb injured frail""",
    "station": """driver porter guard tourist stoker rider pilot / sped left landed parked steered /
        station track airport depot metro bus hub / late crowded distant prompt rapid""",
    "theatre": """actor singer dancer painter poet clown artist / sang danced clapped acted starred /
        theatre stage studio cinema concert opera gallery / famous comic grand elegant festive""",
    "forest": """hunter scout ranger climber hiker camper trapper / roamed hiked rambled tramped strayed /
        forest canyon cave cabin valley swamp glade / wild lost rustic misty frozen""",
}
SCENES = {
    scene: dict(
        zip(
            ("person", "verb", "place", "adjective"),
            (slot.split() for slot in words.split("/")),
            strict=True,
        )
    )
    for scene, words in SCENES.items()
}

# word, its usual scene, its second scene (frequent in text, rare in transcripts) | the same for its twin
HOMOPHONES = """
    sail harbour forest | sale market station
    flour kitchen market | flower farm theatre
    knight castle theatre | night forest hospital
    son hospital castle | sun farm harbour
    tail farm forest | tale school theatre
    hair theatre hospital | hare forest farm
    pear farm kitchen | pair market theatre
    mail station market | male hospital farm
    plane station school | plain forest castle
    steak kitchen market | stake forest farm
    piece theatre kitchen | peace castle hospital
    weight market hospital | wait station school
    scent kitchen farm | cent market station
    pain hospital theatre | pane school castle
    key castle station | quay harbour market
    leak harbour hospital | leek kitchen farm
    lute theatre castle | loot harbour market
    mussel harbour kitchen | muscle hospital school
    rain farm forest | reign castle theatre
    role theatre school | roll kitchen hospital
    fare station harbour | fair school market
    cellar castle kitchen | seller market harbour
    hall school castle | haul station harbour
    maze school castle | maize farm kitchen
    base forest station | bass theatre school
"""
HOMOPHONES = [
    [twin.split() for twin in line.split("|")] for line in HOMOPHONES.strip().splitlines()
]
PAIRS = [(left[0], right[0]) for left, right in HOMOPHONES]
TWIN = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
USUAL = {
    word: scene for line in HOMOPHONES for word, scene, _ in line
}  # {homophone: its usual scene}
SECOND = {word: scene for line in HOMOPHONES for word, _, scene in line}
CUES = {
    word: scene for scene, slots in SCENES.items() for words in slots.values() for word in words
}  # {cue: scene}

# {d} a determiner, {h} a homophone. Headline English: most words are cues, for what is rarely heard is never learnt.
DETERMINERS = ["the", "this", "that", "his", "her", "our"]
ONE_HOMOPHONE = [
    "{adjective} {person} {verb} with {d} {h}",
    "{person} {verb} by {d} {h} in {adjective} {place}",
    "the {adjective} {person} had {d} {h}",
    "{d} {h} and {adjective} {person} {verb}",
    "{adjective} {place} had {d} {h}",
    "is {d} {h} in the {adjective} {place}",
    "did {adjective} {person} have {d} {h}",
    "at {adjective} {place} {person} didn't have {d} {h}",
    "it wasn't {d} {h} {person} {verb} for",
    "{d} {person} {verb} in {adjective} {place} with {d} {h}",
    "the {person}'s {h} was in {adjective} {place}",
    "{person} of the {place} {verb} for {d} {h}",
]
TWO_HOMOPHONES = [
    "{d} {h} and {d} {h} at {adjective} {place}",
    "{adjective} {person} {verb} for {d} {h} and {h}",
    "{person} with {h} and {h} {verb} in {place}",
    "{adjective} {person} had {h} and {d} {h}",
    "the {person}'s {place} had {h} and {h}",
]
