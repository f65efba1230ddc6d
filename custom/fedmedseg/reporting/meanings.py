"""What a model's name means: over the report's columns, to those who ran the study, and on a card, to all others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedmedseg.reporting.tables import Record, label_of, rounds_of

PRETRAINING = "pretraining"
"""Stage of systems whose federation pretrains an encoder; that of all others trains on labels itself."""
COLUMNS = {
    "personal": "{} is the site's own network, trained in the federation",
    "continued": "{} is the same, trained on at the site alone",
    "scratch": "{} is the same training without the other sites",
    "cnn": "{} is the network of the one task",
    "student": "{} is distilled from the tasks' networks",
    "untrained": "{} has seen no label",
}
COLUMNS_AFTER_PRETRAINING = {
    "personal": "{} starts from the site's own pretrained encoder",
    "shared": "{} starts from the federation's encoder",
    "scratch": "{} is the same training without any pretraining",
}
CHOSEN = "Each trained column is a site's network as of the round that validated best there. "
TOGETHER = (
    "Fine-tuning was federated: each trained column is one network of all sites, tested as of the round that validated "
    "best at the site. "
)
CARDS = {
    "personal": "personal: a site's own network",
    "shared": "shared: of all sites together",
    "continued": "continued: a site's own network of the federation, trained on at that site alone",
    "scratch": "scratch: trained at one site alone; of the federation it has nothing",
    "student": "student: the study's transformer, which answers every task",
    "cnn": "cnn: a CNN for each task, trained by sites that annotate it",
}
CARDS_AFTER_PRETRAINING = {
    "personal": "personal: begun from a site's own pretrained encoder, then trained on labels",
    "shared": "shared: begun from the federation's pretrained encoder, then trained on labels",
    "scratch": "scratch: trained on labels alone, without any pretraining",
}
CARDS_UNDER_A_NEW_LAYER = {
    "student": "student: the transformer, frozen, under a last layer learned anew",
    "cnn": "cnn: a task's CNN, frozen, under a last layer learned anew",
}
"""Of networks of which transfer learning trained the last layer alone."""


def legend(record: Record, models: Sequence[str]) -> str:
    """What the columns are, in a sentence; a federated fine-tuning is known by the round each site chose."""
    pretrains = bool(rounds_of(record, PRETRAINING))
    meanings = COLUMNS | (COLUMNS_AFTER_PRETRAINING if pretrains else {})
    said = [meanings[model].format(label_of(model)) for model in models if model in meanings]
    sentence = "; ".join(said)
    figures = (
        name for one in rounds_of(record) for answer in (one.get("sites") or {}).values() for name in _figures(answer)
    )
    together = any(name.startswith("best_round/") for name in figures)
    chosen = (TOGETHER if pretrains else CHOSEN) if together else ""
    return chosen + sentence[:1].upper() + sentence[1:] + ("." if said else "")


def on_card(model: str, *, pretrained: bool = False, new_layer: bool = False) -> str:
    """A model's name with what it means in systems that pretrain or do not, or under a layer that was learned anew."""
    meanings = CARDS | (CARDS_AFTER_PRETRAINING if pretrained else {}) | (CARDS_UNDER_A_NEW_LAYER if new_layer else {})
    return meanings.get(model, model)


def _figures(answer: object) -> list[str]:
    metrics = answer.get("metrics") if isinstance(answer, Mapping) else None
    return [str(name) for name in metrics] if isinstance(metrics, Mapping) else []
