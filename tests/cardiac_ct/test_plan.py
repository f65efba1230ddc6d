"""What crosses the wire in which stage, and what the server holds before the first round."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fedmedseg.cardiac_ct.plan import copies, fresh, initial_shared, made, scan_bytes, stages, work
from fedmedseg.core.config import Experiment

Study = Callable[..., Experiment]
OFF = {"rounds": 0}
NO_TEACHERS = {f"teacher_{task}": OFF for task in ("hps", "ms", "calc")}


def kinds(names: list[str]) -> set[str]:
    """Beginnings of names, up to the task."""
    return {".".join(name.split(".")[:2]) for name in names}


def test_each_stage_sends_and_returns_what_it_trains_and_no_more(study: Study) -> None:
    experiment = study()
    names = list(initial_shared(experiment))
    found = {
        stage: (
            kinds([name for name in names if contract.sent_in(0).holds(name)]),
            kinds([name for name in names if contract.returned_in(0).holds(name)])
            if contract.returns == "shared"
            else set(),
        )
        for stage, contract in stages(experiment).items()
    }
    teachers = {"teacher.hps", "teacher.ms", "teacher.calc"}
    student, layers = {"student.trunk", "student.heads"}, {"transfer.student", "transfer.cnn"}
    assert found == {
        "teacher_hps": ({"teacher.hps"}, {"teacher.hps"}),
        "teacher_ms": ({"teacher.ms"}, {"teacher.ms"}),
        "teacher_calc": ({"teacher.calc"}, {"teacher.calc"}),
        "pseudo_labelling": (teachers, set()),
        "distillation": (student, student),
        "head_tuning": (student, {"student.heads"}),
        "transfer": (student | {"teacher.hps"} | layers, layers),
        "evaluation": (teachers | student | layers, set()),
    }


def test_only_heads_that_moved_are_sent_but_where_the_mean_goes_over_all_sites(study: Study) -> None:
    trained, over_all = stages(study()), stages(study(cardiac_ct={"head_mean": "all"}))
    heads = tuple(f"student.heads.{task}." for task in ("hps", "ms", "calc"))
    assert {stage: one.separable for stage, one in trained.items() if one.separable} == {
        "distillation": heads,
        "head_tuning": heads,
    }
    assert not any(contract.separable for contract in over_all.values())


def test_transfer_sends_the_networks_it_puts_a_layer_on_and_no_other(study: Study) -> None:
    def sent(backbone: str) -> set[str]:
        experiment = study(cardiac_ct={"transfer": {"backbones": [backbone]}})
        part = stages(experiment)["transfer"].sent_in(0)
        return kinds([name for name in initial_shared(experiment) if part.holds(name)])

    assert sent("student") == {"student.trunk", "student.heads", "transfer.student"}
    assert sent("cnn") == {"teacher.hps", "transfer.cnn"}


def test_where_nothing_is_shared_nothing_moves(study: Study) -> None:
    experiment = study(
        cardiac_ct={"share": "nothing", "distillation": {"pseudo_labels": False}, "gate": None},
        stages={"pseudo_labelling": OFF, "distillation": {"rounds": 1}},
    )
    assert {(one.sends, one.returns) for one in stages(experiment).values()} == {("nothing", "metrics")}


def test_networks_that_a_study_neither_trains_nor_starts_from_are_not_there(study: Study) -> None:
    alone = {"stages": {**NO_TEACHERS, "pseudo_labelling": OFF, "distillation": OFF, "head_tuning": OFF}}
    wing = {"gate": None, "head_steps": 0, "start": "0" * 64}
    experiment = study(**alone, cardiac_ct={**wing, "transfer": {"backbones": ["student"], "steps": 1}})
    assert kinds(list(initial_shared(experiment))) == {"student.trunk", "student.heads", "transfer.student"}
    assert fresh(experiment) == ("transfer.",)
    both = study(**alone, cardiac_ct=wing)
    assert {name for name, there in made(both).items() if there} == {
        "teacher.hps",
        "student.",
        "transfer.student",
        "transfer.cnn",
    }


def test_initial_tensors_are_the_same_wherever_they_are_made(study: Study) -> None:
    torch.manual_seed(1)
    first = initial_shared(study())
    torch.manual_seed(2)
    assert all(torch.equal(tensor, first[name]) for name, tensor in initial_shared(study()).items())
    assert all(tensor.dtype == torch.float32 for tensor in first.values())


def test_work_and_copies_are_planned_for_every_stage(study: Study) -> None:
    experiment = study(stages={"distillation": {"rounds": 2}})
    assert work(experiment) == {
        "teacher_hps": 2,
        "teacher_ms": 2,
        "teacher_calc": 2,
        "pseudo_labelling": 2,
        "distillation": 1,
        "head_tuning": 1,
        "transfer": 2,
        "evaluation": 1,
    }
    assert copies(experiment) == {"network": 3}
    assert scan_bytes(experiment) == 1 / 8


def test_a_site_that_shares_nothing_keeps_every_network_of_the_study(study: Study) -> None:
    """Three CNNs and the transformer, beside weights and moments of the one that trains; and no pseudo-labels."""
    alone = {"share": "nothing", "distillation": {"pseudo_labels": False}, "gate": None}
    experiment = study(cardiac_ct=alone, stages={"pseudo_labelling": OFF, "distillation": {"rounds": 1}})
    assert copies(experiment) == {"network": 3 + 4}
    assert scan_bytes(experiment) == 0
