"""The words of the demo world: ten scenes, their cue words, the homophones, and the sentence patterns.

Plain data. Every cue word belongs to one scene alone, so any of them tells where a conversation takes place. Each
homophone belongs to two scenes, its twin to two others: only the cues of the sentence (or of its conversation) decide.
`tests/test_demo.py` proves with eSpeak NG's own phonemes that every pair sounds alike in whole sentences, for every
accent used. All words and patterns were written for this project.
"""

# scene: people / verbs (past, without object) / places / adjectives
SCENES = {
    "harbour": """captain pirate diver skipper angler mariner surfer / floated drifted paddled fished coasted /
        pier dock marina ferry wharf canal delta / salty sandy stormy tidal coastal""",
    "market": """merchant grocer tailor banker trader vendor dealer / haggled shopped traded bartered invested /
        market counter shop stall bank plaza outlet / cheap costly rich frugal fancy""",
    "kitchen": """cook baker waiter butcher chef caterer hostess / baked tasted roasted grated melted /
        kitchen oven pantry stove tavern larder diner / hungry spicy tender sticky crispy""",
    "farm": """farmer gardener shepherd rancher florist grower herder / planted watered harvested weeded raked /
        barn orchard stable hedge pasture garden silo / ripe dusty rural green lazy""",
    "castle": """king queen baron jester archer lancer squire / ruled jousted plotted defended charged /
        castle tower palace chapel dungeon terrace manor / noble brave cruel gallant royal""",
    "school": """teacher pupil student tutor classmate scholar mentor / studied spelled lectured copied revised /
        school library college gym desk campus seminar / clever studious eager shy honest""",
    "hospital": """doctor nurse surgeon dentist medic chemist patient / coughed limped fainted rested healed /
        hospital clinic ward hospice pharmacy sickbed bedside / sick feverish infected injured frail""",
    "station": """driver porter guard tourist traveller commuter pilot / travelled departed landed parked steered /
        station platform airport depot metro bus terminal / late crowded distant prompt rapid""",
    "theatre": """actor singer dancer painter poet clown artist / sang danced clapped performed starred /
        theatre stage studio cinema concert opera gallery / famous comic talented elegant festive""",
    "forest": """hunter scout ranger climber hiker camper trapper / wandered whistled rambled tramped strayed /
        forest canyon cave cabin valley swamp glade / wild lost rustic misty frozen""",
}
SCENES = {
    scene: dict(zip(("person", "verb", "place", "adjective"), (slot.split() for slot in words.split("/")), strict=True))
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
HOMOPHONES = [[twin.split() for twin in line.split("|")] for line in HOMOPHONES.strip().splitlines()]
PAIRS = [(left[0], right[0]) for left, right in HOMOPHONES]
TWIN = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
USUAL = {word: scene for line in HOMOPHONES for word, scene, _ in line}  # {homophone: its usual scene}
SECOND = {word: scene for line in HOMOPHONES for word, _, scene in line}
CUES = {word: scene for scene, slots in SCENES.items() for words in slots.values() for word in words}  # {cue: scene}

# {d} a determiner, {h} a homophone. The words beside a homophone say little: most of its cues stand farther off.
DETERMINERS = ["the", "this", "that", "his", "her", "our"]
ONE_HOMOPHONE = [
    "the {adjective} {person} was there with {d} {h}",
    "was it {d} {h} that the {person} {verb} by",
    "the {person} {verb} in the {place} with {d} {h}",
    "{d} {h} and the {person} were at the {place}",
    "did the {adjective} {person} have {d} {h}",
    "we saw {d} {h} by the {adjective} {place}",
    "it wasn't {d} {h} the {person} {verb} for",
    "is {d} {h} in the {adjective} {place}",
    "at the {place} the {person} didn't have {d} {h}",
    "there was {d} {h} with the {adjective} {person}",
    "they {verb} at the {place} for {d} {h}",
    "the {person}'s in the {place} with {d} {h}",
    "the {person} {verb} for {d} {h}",
    "the {person} with {d} {h} {verb}",
    "the {person} had {d} {adjective} {h}",
]
TWO_HOMOPHONES = [
    "{d} {h} was with {d} {h} at the {place}",
    "the {person} {verb} for {d} {h} and {d} {h}",
    "is {d} {h} or {d} {h} in the {adjective} {place}",
    "the {adjective} {person} had {d} {h} and {d} {h}",
    "with {d} {h} and {d} {h} the {person} {verb}",
    "the {person}'s {place} had {d} {h} and {d} {h}",
]
