import pytest
import torch

from redlab.methods.cdd_red import AUGMENTATIONS, crop_pad, cutmix, cutout, rotation, transformed_views, translation
from redlab.rng import generator


def numbered(n=6, height=32, width=32):
    """Pairs whose clean pixels say which image they come from, in 1..n; the adversarial image is the negative."""
    clean = torch.arange(1.0, n + 1).view(n, 1, 1, 1).expand(n, 1, height, width)
    return torch.stack([clean, -clean])


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize(("height", "width"), [(32, 32), (7, 20), (1, 1)])
def test_same_draws_for_both_images_and_out_of_place(name, height, width):
    for seed in range(20):
        pairs = numbered(5, height, width).clone()
        before = pairs.clone()
        out = AUGMENTATIONS[name](pairs, generator(seed))
        assert torch.equal(pairs, before)
        assert out.shape == pairs.shape
        assert torch.equal(out[1], -out[0])
        assert name == "identity" or out.data_ptr() != pairs.data_ptr()


def test_crop_pad_keeps_one_window_in_place():
    for seed in range(50):
        pairs = torch.rand(2, 3, 2, 32, 32) + 1
        out = crop_pad(pairs, generator(seed))
        kept = out != 0
        assert torch.equal(out[kept], pairs[kept])
        assert torch.equal(kept, kept[:1, :1, :1].expand_as(kept))  # one mask for all
        rows, columns = kept[0, 0, 0].any(1), kept[0, 0, 0].any(0)
        assert torch.equal(kept[0, 0, 0], rows[:, None] & columns[None])  # a rectangle ...
        for line in (rows, columns):  # ... without gaps
            assert int((line[1:] != line[:-1]).sum()) <= 2


def test_crop_pad_area_at_224():
    pairs = torch.ones(1, 1, 1, 224, 224)
    area = torch.tensor([float(crop_pad(pairs, generator(seed)).mean()) for seed in range(3000)])
    assert float(area.mean()) == pytest.approx(0.34, abs=0.015)
    low, median, high = torch.quantile(area, torch.tensor([0.05, 0.5, 0.95])).tolist()
    assert low == pytest.approx(0.06, abs=0.015)
    assert median == pytest.approx(0.33, abs=0.015)
    assert high == pytest.approx(0.67, abs=0.02)


def test_cutout_blackens_one_square_of_at_most_50_of_224_pixels():
    sides = []
    for seed in range(300):
        hole = cutout(torch.ones(1, 1, 1, 224, 224), generator(seed))[0, 0, 0] == 0
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None])
        sides.append(max(int(rows.sum()), int(columns.sum())))
    assert 40 < max(sides) <= 50
    assert sum(sides) / len(sides) == pytest.approx(13.25, abs=2)  # the mean of U{1..U{1..50}}, less at the border


def test_a_rotation_turns_about_the_centre():
    angles = set()
    for seed in range(20):
        pairs = torch.zeros(1, 1, 1, 65, 65)
        pairs[..., 30:35, 52:57] = 1.0  # 22 to the right of the centre
        out = rotation(pairs, generator(seed))[0, 0, 0].double()
        y, x = (torch.arange(65.0).double() - 32 for _ in range(2))
        mass = float(out.sum())
        centre = torch.tensor([float((out.sum(1) * y).sum()), float((out.sum(0) * x).sum())]) / mass
        assert mass == pytest.approx(25, rel=0.05)
        assert float(centre.norm()) == pytest.approx(22, abs=0.5)
        angles.add(round(float(torch.atan2(centre[0], centre[1])), 1))
    assert len(angles) > 10


def test_a_translation_shifts_by_whole_pixels_up_to_a_quarter_and_fills_with_black():
    shifts = set()
    for seed in range(300):
        pairs = torch.zeros(1, 1, 1, 16, 24)
        pairs[..., 8, 12] = 1.0
        out = translation(pairs, generator(seed))[0, 0, 0]
        ((y, x),) = out.nonzero().tolist()
        assert float(out[y, x]) == pytest.approx(1)
        shifts.add((y - 8, x - 12))
    assert {y for y, _ in shifts} == set(range(-4, 5))
    assert {x for _, x in shifts} == set(range(-6, 7))


def test_crop_pad_scales_its_sides_with_the_image():
    def mean_area(size):
        pairs = torch.ones(1, 1, 1, size, size)
        return sum(float(crop_pad(pairs, generator(seed)).mean()) for seed in range(2000)) / 2000

    assert mean_area(32) == pytest.approx(0.34, abs=0.03)


def test_cutmix_takes_one_box_of_another_pair_and_keeps_the_host():
    pairs, donors = numbered(6), set()
    for seed in range(50):
        out = cutmix(pairs, generator(seed))[0, :, 0]
        changed = out != pairs[0, :, 0]
        box = changed.any(0)
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None])
        donor = [sorted(set(image[box].tolist())) for image in out]
        if box.any():
            assert all(len(d) == 1 for d in donor)  # one donor per host
            assert sorted(d[0] for d in donor) == [1, 2, 3, 4, 5, 6]  # a permutation
            donors.add(tuple(d[0] for d in donor))
    assert len(donors) > 20


def test_cutmix_area():
    """Beta(1, 1) share v, side sqrt(v), uniform centre: E[(s - s^2/4)^2] = 1/2 - 1/5 + 1/48 after clipping."""
    pairs = torch.stack([torch.zeros(1, 1, 96, 96), torch.ones(1, 1, 96, 96)], dim=1)
    means = [cutmix(pairs, generator(seed))[0].mean((1, 2, 3)) for seed in range(3000)]
    area = torch.stack([m[0] for m in means if m[0] != 0])  # the permutation of two moves them every second time
    moved = len(area) / 3000
    assert moved == pytest.approx(0.5, abs=0.03)
    assert float(area.mean()) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.025)


def test_concat_keeps_the_original_pairs_first():
    pairs = torch.rand(2, 5, 1, 8, 8)
    views, original = transformed_views(pairs, ["crop_pad", "cutmix"], "concat", None, generator(3))
    assert views.shape == (2, 15, 1, 8, 8)
    assert torch.equal(views[:, :5], pairs)
    assert original.tolist() == [True] * 5 + [False] * 10
    g = generator(3)
    assert torch.equal(views[:, 5:10], crop_pad(pairs, g))
    assert torch.equal(views[:, 10:], cutmix(pairs, g))


def test_groups_have_their_own_draws():
    pairs = torch.ones(2, 10, 1, 32, 32)
    views, _ = transformed_views(pairs, ["crop_pad"], "concat", 4, generator(0))
    masks = views[0, 10:, 0]
    assert len({mask.numpy().tobytes() for mask in masks[[0, 4, 8]]}) == 3
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert len({mask.numpy().tobytes() for mask in masks[rows]}) == 1


def test_sample_does_not_grow_the_batch_and_draws_each_choice_evenly():
    pairs = numbered(600, 8, 8)
    views, original = transformed_views(pairs, ["crop_pad", "cutmix"], "sample", 2, generator(0))
    assert views.shape == pairs.shape
    assert torch.equal(views[:, original], pairs[:, original])
    assert float(original.float().mean()) == pytest.approx(1 / 3, abs=0.08)
    black = (views[0] == 0).flatten(1).any(1)
    assert float(black.float().mean()) == pytest.approx(1 / 3, abs=0.08)


def test_none_is_the_original_pairs():
    pairs = torch.rand(2, 3, 1, 8, 8)
    views, original = transformed_views(pairs, ["crop_pad"], "none", None, generator(0))
    assert torch.equal(views, pairs)
    assert original.all()


def test_step_generator_depends_on_every_part_of_its_key():
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    draws = [float(torch.rand((), generator=generator(*key), dtype=torch.float64)) for key in keys]
    assert len(set(draws)) == 5
    torch.manual_seed(9)  # whatever the global state
    assert draws[0] == float(torch.rand((), generator=generator(0, 0, 0, 0), dtype=torch.float64))
