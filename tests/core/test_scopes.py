"""privacy.json: what FLARE builds from it, and that no scope a job may choose asks for less than another."""

from __future__ import annotations

import copy
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from nvflare.apis.fl_constant import FilterKey
from nvflare.apis.workspace import Workspace
from nvflare.private.fed.app.fl_conf import create_privacy_manager

from fedmedseg.core.errors import ConfigurationError
from fedmedseg.core.scopes import FILTERS, ORDER, SCOPES, choices, privacy_policy, problems, scope_names
from fedmedseg.privacy.filters import SiteFilter


def flares_view(folder: Path, policy: Any) -> Any:
    """What FLARE makes of a kit's privacy.json."""
    (folder / "local").mkdir()
    (folder / "startup").mkdir()
    (folder / "local" / "privacy.json").write_text(json.dumps(policy))
    return create_privacy_manager(Workspace(str(folder), "site-1"), names_only=False)


def test_flare_builds_exactly_our_filters_in_their_order(tmp_path: Path) -> None:
    manager = flares_view(tmp_path, privacy_policy())
    assert manager.is_policy_defined()
    assert manager.default_scope.name == "standard"
    for name in SCOPES:
        scope = manager.get_scope(name)
        assert [type(one).__name__ for one in scope.task_result_filters[FilterKey.OUT]] == list(ORDER)
        assert scope.task_result_filters[FilterKey.IN] == []
        assert scope.task_data_filters == {FilterKey.IN: [], FilterKey.OUT: []}
        built = {type(one).__name__: one for one in scope.task_result_filters[FilterKey.OUT]}
        for filter_name, args in SCOPES[name].items():
            assert {key: getattr(built[filter_name], key) for key in args} == args


def test_every_filter_is_one_of_ours_and_in_the_order_that_executors_insist_on() -> None:
    for scope in privacy_policy()["scopes"]:
        paths = [one["path"] for one in scope["task_result_filters"]]
        assert paths == [f"{FILTERS}{name}" for name in ORDER]
        for path in paths:
            module, _, name = path.rpartition(".")
            assert issubclass(getattr(importlib.import_module(module), name), SiteFilter)


def test_a_hospital_may_choose_among_the_scopes_and_is_told_that_it_did() -> None:
    assert choices(privacy_policy()) == []
    assert choices(privacy_policy(offered=["standard", "bounded", "private"])) == ["scope 'figures' is not offered"]
    narrow = privacy_policy(offered=["private"], default="private")
    assert len(choices(narrow)) == 4
    assert choices(narrow)[-1] == "default_scope is 'private' instead of 'standard'"


def test_a_server_knows_the_scopes_by_name_alone() -> None:
    names = scope_names(privacy_policy())
    assert names == {"scopes": [{"name": name} for name in SCOPES], "default_scope": "standard"}


def test_a_site_offers_what_it_wants() -> None:
    policy = privacy_policy(offered=["private"], default="private")
    assert [scope["name"] for scope in policy["scopes"]] == ["private"]
    assert json.loads(json.dumps(policy)) == policy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offered": ["standrad"]}, "write 'standard'"),
        ({"offered": []}, "default privacy scope"),
        ({"offered": ["private"]}, "one that is offered: private"),
        ({"default": "figure"}, "default privacy scope"),
    ],
)
def test_a_policy_without_meaning_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        privacy_policy(**settings)


def test_our_own_policies_have_no_problem() -> None:
    assert problems(privacy_policy()) == []
    assert problems(privacy_policy(offered=["figures", "private"], default="private")) == []


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    policy: Any = copy.deepcopy(privacy_policy())
    node = policy
    for key in path[:-1]:
        node = node[key]
    if value is None:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return policy


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "expected scopes"),
        ({}, "expected scopes"),
        ({"scopes": [], "default_scope": "standard"}, "run no filter"),
        (changed(["scopes", 0, "task_result_filters"], []), "exactly"),
        (changed(["scopes", 0, "task_result_filters", 2], None), "exactly"),
        (changed(["scopes", 0, "task_result_filters", 0, "path"], "nvflare.x.Y"), "exactly"),
        (changed(["scopes", 2, "task_result_filters", 2, "args"], {}), "exactly"),
        (changed(["scopes", 0, "name"], "open"), "not one of"),
        (changed(["scopes", 1, "name"], "standard"), "twice"),
        (changed(["scopes", 0], "x"), "not one of"),
        (changed(["default_scope"], "open"), "default_scope"),
        ({**privacy_policy(), "components": []}, "nothing else"),
    ],
)
def test_a_weakened_policy_is_told(content: Any, word: str) -> None:
    assert any(word in line for line in problems(content))


def test_the_scope_that_asks_for_nothing_more_is_the_default_and_all_others_only_add() -> None:
    """A job names its scope: none may be a way round the site file."""
    assert SCOPES["standard"] == {}
    allowed = {("clip", "required"), ("noise", "required"), ("tensors", False)}
    for name, demands in SCOPES.items():
        assert {item for args in demands.values() for item in args.items()} <= allowed, name


def test_a_scope_that_is_not_offered_is_unknown_to_flare(tmp_path: Path) -> None:
    from nvflare.private.privacy_manager import PrivacyService

    PrivacyService.initialize(flares_view(tmp_path, privacy_policy(offered=["private"], default="private")))
    assert PrivacyService.is_scope_allowed("private")
    assert PrivacyService.is_scope_allowed("")
    assert not PrivacyService.is_scope_allowed("standard")
