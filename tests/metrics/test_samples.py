"""The table of rows: choosing, grouping, joining and saving."""

import itertools
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from redlab.metrics import Samples

NAMES = {"attack": ("clean", "fgsm", "pgd"), "victim": ("a", "b"), "setting": ("", "eps 4")}


def table(n=50, seed=0, **more):
    g = torch.Generator().manual_seed(seed)
    columns = {
        "image": torch.arange(n),
        "attack": torch.randint(0, 3, (n,), generator=g),
        "victim": torch.randint(0, 2, (n,), generator=g),
        "setting": torch.randint(0, 2, (n,), generator=g),
        "right": torch.randint(0, 2, (n,), generator=g),
        "d": torch.where(torch.rand(n, generator=g) < 0.2, torch.nan, torch.rand(n, generator=g)),
    }
    return Samples(columns | more, NAMES)


def plain(rows):
    columns = [
        [rows.names[name][v] for v in values.tolist()] if name in rows.names else values.tolist()
        for name, values in rows.columns.items()
    ]
    return [
        {k: None if v != v else v for k, v in zip(rows.columns, row, strict=True)} for row in zip(*columns, strict=True)
    ]


def test_where_takes_names_numbers_and_lists():
    rows = table()
    every = plain(rows)
    assert plain(rows.where(attack="pgd")) == [row for row in every if row["attack"] == "pgd"]
    assert plain(rows.where(attack=["pgd", "clean"], right=1)) == [
        row for row in every if row["attack"] != "fgsm" and row["right"] == 1
    ]
    assert plain(rows.where(image=(3, 4))) == every[3:5]
    assert len(rows.where(attack=[])) == 0
    assert rows.where(attack="pgd").where(victim="a").mean("right") == rows.where(attack="pgd", victim="a").mean(
        "right"
    )


def test_what_is_not_there_is_said():
    rows = table()
    with pytest.raises(ValueError, match="attack has no 'pdg'; there are clean, fgsm, pgd"):
        rows.where(attack="pdg")
    for call in (lambda: rows["psnr"], lambda: rows.where(psnr=1), lambda: rows.mean("psnr"), lambda: rows.judges,
                 lambda: next(rows.groups("attack", "psnr"))):  # fmt: skip
        with pytest.raises(ValueError, match=r"no column '(psnr|judge)'; there are image, attack"):
            call()
    with pytest.raises(ValueError, match="attack holds names"):
        rows.mean("attack")


def test_groups_are_the_rows_of_each_combination_in_order():
    rows = table()
    for columns in itertools.permutations(("attack", "victim", "right"), 2):
        found = [(value, plain(group)) for value, group in rows.groups(*columns)]
        wanted = {}
        for row in plain(rows):
            wanted.setdefault(tuple(row[name] for name in columns), []).append(row)
        order = {name: list(known) for name, known in NAMES.items()} | {"right": [0.0, 1.0]}
        keys = sorted(wanted, key=lambda key: [order[c].index(v) for c, v in zip(columns, key, strict=True)])
        assert found == [(key, wanted[key]) for key in keys]
    (((), everything),) = rows.groups()
    assert plain(everything) == plain(rows)
    assert list(rows.where(attack=[]).groups("attack", "victim")) == []


def test_nan_is_no_value():
    rows = Samples({"d": [1.0, math.nan, 2.0, math.nan], "e": [math.nan] * 4})
    assert rows.values("d") == (1.0, 2.0)
    assert [(value, len(group)) for value, group in rows.groups("d")] == [((1.0,), 1), ((2.0,), 1)]
    assert rows.mean("d") == 1.5
    assert math.isnan(rows.mean("e"))
    assert rows.codes("d")[0].tolist() == [0, -1, 1, -1]


def test_names_that_occur():
    columns = {"attack": [2, 0, 2], "victim": [1, 1, 1], "judge": [0, 1, 0], "setting": [0, 0, 1]}
    rows = Samples(columns, NAMES | {"judge": ("a", "b")})
    assert (rows.attacks, rows.victims, rows.judges) == (("clean", "pgd"), ("b",), ("a", "b"))
    assert rows.settings == ("", "eps 4")
    assert rows.where(attack="pgd").judges == ("a",)
    assert repr(rows) == "Samples(3 rows of 2 attacks, 1 victims: attack, victim, judge, setting)"


def test_rows_are_joined_by_name():
    first = Samples({"attack": [0, 1], "image": [0, 1], "d": [1, 2]}, {"attack": ("clean", "pgd")})
    second = Samples(
        {"attack": [0, 1, 2], "image": [2, 3, 4], "said": [1, 0, 1], "p": [0.1, 0.2, 0.3]},
        {"attack": ("pgd", "cw", "clean"), "said": ("clean", "pgd")},
    )
    both = Samples.cat([first, Samples({}), second])
    assert both.names["attack"] == ("clean", "pgd", "cw")
    assert plain(both) == [
        {"attack": "clean", "image": 0, "d": 1, "said": "", "p": None},
        {"attack": "pgd", "image": 1, "d": 2, "said": "", "p": None},
        {"attack": "pgd", "image": 2, "d": None, "said": "pgd", "p": 0.1},
        {"attack": "cw", "image": 3, "d": None, "said": "clean", "p": 0.2},
        {"attack": "clean", "image": 4, "d": None, "said": "pgd", "p": 0.3},
    ]
    assert Samples.cat([]).columns == {}


def test_rows_that_cannot_be_joined():
    with pytest.raises(ValueError, match="without image"):
        Samples.cat([Samples({"image": [1]}), Samples({"d": [1]})])
    with pytest.raises(ValueError, match="attack has names in some of the rows only"):
        Samples.cat([Samples({"attack": [1]}), Samples({"attack": [0]}, {"attack": ("clean",)})])


def test_columns_that_make_no_table():
    with pytest.raises(ValueError, match=r"one length, got .*'d': \(2,\)"):
        Samples({"image": [1], "d": [1, 2]})
    with pytest.raises(ValueError, match=r"one length, got .*'d': \(1, 2\)"):
        Samples({"d": [[1, 2]]})
    with pytest.raises(ValueError, match=r"attack must be in 0\.\.1 .*got \[0, 2\]"):
        Samples({"attack": [0, 2]}, {"attack": ("clean", "pgd")})
    with pytest.raises(ValueError, match="'victim', which is no column"):
        Samples({"attack": [0]}, {"attack": ("clean",), "victim": ("a",)})


def test_saved_rows_come_back_to_the_bit(tmp_path: Path):
    odd = ("clean", "pgd|20", "a.names", "50 %", "é")
    columns = {"p_a.names": [0.1, math.nan, 1e-300], "attack": [4, 2, 0], "image": [2**40, 0, 1]}
    rows = Samples(columns, {"attack": odd})
    path = rows.save(tmp_path / "deep/samples.npz")
    assert [p.name for p in path.parent.iterdir()] == ["samples.npz"]
    back = Samples.load(path)
    assert back.names == rows.names
    assert list(back.columns) == list(rows.columns)
    for name, values in rows.columns.items():
        assert back[name].dtype == values.dtype
        assert torch.equal(back[name].nan_to_num(-1), values.nan_to_num(-1)), name
    assert Samples.load(Samples({}).save(tmp_path / "none.npz")).columns == {}


class Trap:
    """Pickled, it makes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_file_that_is_no_table_is_refused_and_not_executed(tmp_path: Path):
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "objects.npz", image=np.array([Trap(sprung)], dtype=object))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap(sprung)))
    whole = table().save(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "code.npz", **{"attack": np.array([3]), "names/attack": np.array(["clean"])})
    np.savez(tmp_path / "text.npz", image=np.array(["a"]))
    for name in ("objects", "pickle", "cut", "code", "text", "missing"):
        with pytest.raises(ValueError, match=rf"{name}.npz cannot be read as rows of an evaluation"):
            Samples.load(tmp_path / f"{name}.npz")
    assert not sprung.exists()


def test_columns_can_be_added():
    rows = table()
    more = rows.with_columns(fooled=rows["right"] == 0)
    assert more.mean("fooled") == pytest.approx(1 - rows.mean("right"))
    assert "fooled" not in rows
