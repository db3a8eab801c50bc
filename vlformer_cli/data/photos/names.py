"""What people call things: names by category, broader names, and which things have no single color.

The names follow the frequency of words in RefCOCO, RefCOCO+ and RefCOCOg; the synonyms agree with those of LVIS.
"""

from __future__ import annotations

_COCO = (
    "person;bicycle,bike;car;motorcycle,motorbike,bike;airplane,plane,jet;bus;train;truck;boat;traffic light,stoplight;"
    "fire hydrant,hydrant;stop sign,sign;parking meter,meter;bench;bird;cat,kitty;dog;horse;sheep;cow;elephant;bear;"
    "zebra;giraffe;backpack,bag;umbrella;handbag,purse,bag;tie,necktie;suitcase,luggage;frisbee,disc;skis;"
    "snowboard,board;sports ball,ball;kite;baseball bat,bat;baseball glove,glove,mitt;skateboard,board;surfboard,board;"
    "tennis racket,racket,racquet;bottle;wine glass,glass;cup;fork;knife;spoon;bowl;banana;apple;sandwich;orange;"
    "broccoli;carrot;hot dog;pizza;donut,doughnut;cake;chair,seat;couch,sofa;potted plant,plant;bed;"
    "dining table,table;toilet;tv,television,screen,monitor;laptop,computer,laptop computer;mouse,computer mouse;"
    "remote,remote control;keyboard;cell phone,phone,cellphone;microwave;oven,stove;toaster;sink;refrigerator,fridge;"
    "book;clock;vase;scissors;teddy bear,teddy,stuffed animal;hair drier,hair dryer;toothbrush"
)
_MORE = (
    "coffee mug,mug,cup;plate,dish;spatula;skillet,frying pan,pan;blender;dishwasher;slice of bread,bread,bread slice;"
    "fire truck,firetruck,fire engine,truck;monkey;tiger;turtle;otter;deer;escalator;door;stairs,staircase,steps;"
    "lift,elevator;shoes;hair;bag;pants,trousers;dress;coat,jacket;purse,handbag,bag;blouse,shirt,top;skirt;shirt;"
    "jeans,pants;sweater;belt;hat;blazer,jacket;t-shirt,tee shirt,shirt;suit;stockings,tights;scarf;jacket,coat;"
    "sandals,shoes;vest;shorts;boots,shoes;top,shirt;leggings,pants;sweatshirt;socks;romper;sunglasses;cape;"
    "loafers,shoes;jumper,sweater;wallet;heels,high heels,shoes;sneakers,shoes;gloves;cardigan,sweater;pumps,shoes;"
    "bodysuit;necklace;flats,shoes;tights,stockings;wedges,shoes;bracelet;hoodie;glasses;cellular telephone,phone;"
    "jean,jeans;minivan,van;motor scooter,scooter;laptop computer,laptop;shoe;sock;boot;cab,taxi;glass;baby;bull;canoe"
)


def _table(text: str) -> dict[str, tuple[str, ...]]:
    lists = [entry.split(",") for entry in text.split(";")]
    return {names[0]: tuple(names) for names in lists}


COCO_CATEGORIES = frozenset(_table(_COCO))
"""The 80 categories of COCO's detection task."""

NAMES = {**_table(_MORE), **_table(_COCO)}
"""What a category is called, the category's own name first."""

BROADER = {
    "animal": (
        *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
        *("monkey", "tiger", "turtle", "otter", "deer"),
    ),
    "vehicle": ("car", "motorcycle", "bus", "train", "truck", "fire truck"),
    "fruit": ("banana", "apple", "orange"),
}
"""Broader names and the categories that they cover."""

CLOTHES = frozenset(
    {
        *("shoes", "hair", "bag", "pants", "dress", "coat", "purse", "blouse", "skirt", "shirt", "jeans", "sweater"),
        *("belt", "hat", "blazer", "t-shirt", "suit", "stockings", "accessories", "scarf", "jacket", "sandals", "vest"),
        *("shorts", "boots", "top", "leggings", "sweatshirt", "socks", "romper", "sunglasses", "cape", "loafers"),
        *("jumper", "wallet", "heels", "sneakers", "gloves", "tie", "cardigan", "pumps", "bodysuit", "necklace"),
        *("flats", "tights", "wedges", "bracelet", "hoodie", "glasses"),
    }
)
"""What a person wears or carries: a part of a person where both are annotated."""

WORN = CLOTHES - {"hair", "bag", "purse", "accessories", "wallet", "glasses", "sunglasses", "belt", "necklace"}
"""Clothes that name their wearer: "woman in the red dress"."""

CARRIED = frozenset({"bag", "purse", "hat", "sunglasses", "scarf"})
""" "woman with the black bag"."""

WOMENS = frozenset({"dress", "skirt", "blouse", "stockings", "heels", "pumps", "romper", "bodysuit", "wedges"})
"""Clothes of which the photographs' wearers are women."""

CARRIED_BY_PEOPLE = frozenset({"backpack", "umbrella", "handbag", "tie", "suitcase", "cell phone"})
"""A cut-out of a person may show one of these without saying so."""

RIDDEN = {
    **dict.fromkeys(("bicycle", "motorcycle", "horse", "elephant", "skateboard", "surfboard"), ("on", "riding")),
    **dict.fromkeys(("snowboard", "skis", "bench", "couch", "bed"), ("on",)),
}
"""What people are on, and how that is said."""
HELD = {
    **dict.fromkeys(("umbrella", "tennis racket", "baseball bat", "frisbee", "cell phone"), ("with", "holding")),
    **dict.fromkeys(("teddy bear", "remote", "kite"), ("with", "holding")),
    **dict.fromkeys(("handbag", "suitcase"), ("with", "carrying")),
    **dict.fromkeys(("surfboard", "snowboard", "skateboard"), ("with",)),
    **dict.fromkeys(("tie", "backpack", "baseball glove"), ("with", "wearing")),
}
"""What people hold or wear, and how that is said."""
ROLES = {
    "skis": ("skier",),
    "snowboard": ("snowboarder",),
    "surfboard": ("surfer",),
    "skateboard": ("skateboarder", "skater"),
    "tennis racket": ("tennis player", "player"),
    "baseball bat": ("batter", "hitter"),
    "motorcycle": ("biker", "motorcyclist"),
    "bicycle": ("cyclist", "biker"),
}
"""What a person is called who is on something or holds it."""

PLURAL = frozenset(
    {
        *(
            "shoes",
            "pants",
            "jeans",
            "stockings",
            "sandals",
            "shorts",
            "boots",
            "leggings",
            "socks",
            "loafers",
            "heels",
        ),
        *("sneakers", "gloves", "pumps", "flats", "tights", "wedges", "glasses", "sunglasses", "skis", "scissors"),
        *("stairs", "trousers", "high heels", "steps"),
    }
)
"""Names that are plural already."""

MASS = frozenset({"hair", "luggage", "bread", "accessories", "broccoli"})
"""Names without a plural or an "a"."""

UNCOLORED = frozenset(
    {"person", "zebra", "giraffe", "tiger", "hair", "accessories", "pizza", "sandwich", "tv", "turtle"}
)
"""Categories whose color nobody would name by the mean of their pixels."""

NEVER_NAMED = frozenset({"accessories"})
"""Categories that are no name of one thing."""


CONSPICUOUS = frozenset(
    {
        *("elephant", "bear", "zebra", "giraffe", "monkey", "tiger", "turtle", "otter", "deer", "airplane", "train"),
        *("fire truck", "escalator"),
    }
)
"""Categories that no photograph shows by accident: one without any of them annotated shows none of them."""


def names_of(category: str) -> tuple[str, ...]:
    """What a category is called; an unknown category is called by its own name.

    >>> names_of("couch"), names_of("garden_gnome")
    (('couch', 'sofa'), ('garden gnome',))
    """
    return NAMES.get(category) or (category.replace("_", " ").lower(),)


def categories_called(name: str) -> frozenset[str]:
    """Every known category that a name may mean.

    >>> sorted(categories_called("bike"))
    ['bicycle', 'motorcycle']
    """
    if name in BROADER:
        return frozenset(BROADER[name])
    return _CALLED.get(name, frozenset({name}))


def _called() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for category, names in NAMES.items():
        for name in names:
            found.setdefault(name, set()).add(category)
    return {name: frozenset(categories) for name, categories in found.items()}


_CALLED = _called()
