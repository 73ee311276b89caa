"""Batches: every sample once, decided by seed and epoch alone, the same for one process and for many."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ncflow.data import Share, SnapshotDamaged, Storage
from ncflow.data.augment import AUGMENTATIONS, create_augmentation
from ncflow.data.decoding import RESIZINGS, decode, fit_square
from ncflow.data.images import PictureDamaged, decode_image
from ncflow.data.loaders import Batches, batch_sizes, load_batches
from ncflow.data.pictures import Resident, Streamed
from ncflow.data.sampling import SAMPLINGS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def numbered_pictures(batches):
    """A picture that shows the number of its sample, so that tests see who came when."""
    for indices in batches:
        yield indices.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def numbered(num_samples: int, **options) -> Batches:
    return Batches(
        pictures=numbered_pictures,
        targets=torch.arange(num_samples) % 3,
        pixel_mean=torch.zeros(1),
        pixel_std=torch.full((1,), 1 / 255),
        augment=create_augmentation("none"),
        num_classes=3,
        **options,
    )


def shares(batches: Batches, num_processes: int) -> list[Batches]:
    return [replace(batches, process_index=i, num_processes=num_processes) for i in range(num_processes)]


def numbers(batches) -> list[list[int]]:
    return [images[:, 0, 0, 0].round().int().tolist() for images, _ in batches]


def obvious_batch_sizes(num_samples: int, batch_size: int, num_processes: int) -> list[int]:
    batches = [range(i, min(i + batch_size, num_samples)) for i in range(0, num_samples, batch_size)]
    if len(batches) > 1 and (len(batches[-1]) == 1 or len(batches[-1]) < num_processes):
        batches[-2:] = [range(batches[-2].start, num_samples)]
    return [len(batch) for batch in batches]


@pytest.mark.parametrize("num_processes", [1, 2, 4])
@pytest.mark.parametrize("batch_size", [4, 8, 32])
def test_batch_sizes_drop_nothing_and_leave_no_sample_alone(batch_size, num_processes):
    for num_samples in range(max(num_processes, 2), 100):
        sizes = batch_sizes(num_samples, batch_size, num_processes)
        assert sizes == obvious_batch_sizes(num_samples, batch_size, num_processes)
        assert sum(sizes) == num_samples
        assert min(sizes) >= max(num_processes, 2)


@pytest.mark.parametrize("num_samples", [33, 64, 65, 100])
@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_an_epoch_holds_every_sample_once(num_samples, num_processes):
    parts = shares(numbered(num_samples, batch_size=32), num_processes)
    epochs = [numbers(part.shuffled(0)) for part in parts]
    assert sorted(i for epoch in epochs for batch in epoch for i in batch) == list(range(num_samples))
    assert {len(epoch) for epoch in epochs} == {len(part) for part in parts} == {len(parts[0])}


def test_two_processes_have_the_batches_of_one_whatever_their_number():
    for num_samples in range(2, 60):
        assert batch_sizes(num_samples, 7, 2) == batch_sizes(num_samples, 7, 1)


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("num_processes", [2, 3, 4])
def test_the_parts_of_the_processes_make_up_the_batch_of_one(num_processes, sampling):
    alone = numbered(108, batch_size=31, seed=5, sampling=sampling)  # the last batch of 15 has a part for each
    parts = [numbers(part.shuffled(2)) for part in shares(alone, num_processes)]
    assert [sum(batch, []) for batch in zip(*parts, strict=True)] == numbers(alone.shuffled(2))


@pytest.mark.parametrize("num_processes", [1, 3, 4, 8])
def test_ordered_shares_cover_the_split_in_stored_order(num_processes):
    parts = shares(numbered(50, batch_size=24), num_processes)
    assert [i for part in parts for batch in numbers(part.ordered()) for i in batch] == list(range(50))


def test_more_processes_than_samples_leave_some_with_nothing_to_evaluate():
    assert [numbers(part.ordered()) for part in shares(numbered(2, batch_size=4), 4)] == [[[0]], [[1]], [], []]


def test_seed_and_epoch_decide_the_order_and_nothing_else():
    batches = numbered(100, batch_size=32, seed=0)
    torch.manual_seed(123)
    first = numbers(batches.shuffled(0))
    torch.manual_seed(321)
    assert numbers(numbered(100, batch_size=32, seed=0).shuffled(0)) == first
    others = [batches.shuffled(1), replace(batches, seed=1).shuffled(0), replace(batches, seed=1).shuffled(1)]
    assert all(numbers(other) != first for other in others)


def test_targets_belong_to_their_images():
    batches = numbered(100, batch_size=32)
    for images, targets in [*batches.shuffled(0), *batches.ordered()]:
        assert targets.dtype == torch.int64
        assert torch.equal(images[:, 0, 0, 0].round().long() % 3, targets)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 3, "num_processes": 4}, "a batch_size of 4 samples at least, one for each process, got 3"),
        ({"batch_size": 0}, "a batch_size of 1 samples at least, .* got 0"),
        ({"batch_size": 8, "process_index": 2, "num_processes": 2}, "expected process_index below 2"),
    ],
)
def test_an_impossible_share_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        numbered(100, **options)


def test_fewer_samples_than_processes_cannot_be_trained_on():
    with pytest.raises(ValueError, match="3 samples cannot be shared by 4 processes"):
        len(numbered(3, batch_size=4, num_processes=4))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_the_same_seed_gives_the_same_bits(digits, augment, device):
    options = {"batch_size": 64, "augment": augment, "image_size": 16}
    epochs = [load_batches(digits, "train", device=device, **options).shuffled(4) for _ in range(2)]
    for (images, targets), (images_again, targets_again) in zip(*epochs, strict=True):
        assert torch.equal(images, images_again) and torch.equal(targets, targets_again)
        assert images.shape == (len(targets), 3, 16, 16) and images.dtype == torch.float32
        assert images.device.type == targets.device.type == device


@pytest.mark.parametrize("num_processes", [2, 4])
def test_an_image_is_augmented_alike_on_one_process_and_on_many(digits, num_processes):
    alone = load_batches(digits, "train", batch_size=64, augment="crop_flip", seed=3)
    parts = [part.shuffled(1) for part in shares(alone, num_processes)]
    for (images, _), *batch in zip(alone.shuffled(1), *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in batch]), images)


def test_another_epoch_is_augmented_differently(digits):
    batches = load_batches(digits, "train", augment="crop_flip", batch_size=512)
    sums = [next(batches.shuffled(epoch))[0].sum().item() for epoch in range(3)]  # a crop changes what is in the image
    assert len(set(sums)) == 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("augment", ["crop_flip", "random_resized_crop"])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("which", ["digits", "flower_snapshot"])
def test_streamed_batches_equal_resident_ones(which, workers, augment, device, request):
    snapshot = request.getfixturevalue(which)
    options = {"batch_size": 128, "augment": augment, "device": device}
    resident = load_batches(snapshot, "train", storage=Storage(2**30, workers), **options)
    streamed = load_batches(snapshot, "train", storage=Storage(0, workers), **options)
    assert isinstance(resident.pictures, Resident) and isinstance(streamed.pictures, Streamed)
    for ours, theirs in [(resident.shuffled(0), streamed.shuffled(0)), (resident.ordered(), streamed.ordered())]:
        for (images, targets), (same_images, same_targets) in zip(ours, theirs, strict=True):
            assert torch.equal(images, same_images) and torch.equal(targets, same_targets)


def test_passes_over_streamed_pictures_do_not_disturb_each_other(flower_snapshot):
    resident = load_batches(flower_snapshot, "train", batch_size=3)
    streamed = load_batches(flower_snapshot, "train", batch_size=3, storage=Storage(0, 2))
    expected = [images for images, _ in resident.shuffled(1)]
    abandoned = streamed.shuffled(0)
    next(abandoned)
    passes = [streamed.shuffled(1), streamed.shuffled(1)]
    for theirs, *ours in zip(expected, *passes, strict=True):
        assert all(torch.equal(images, theirs) for images, _ in ours)
    abandoned.close()
    assert all(torch.equal(ours, theirs) for (ours, _), theirs in zip(streamed.shuffled(1), expected, strict=True))


@pytest.mark.parametrize("storage", [Storage(2**30), Storage(0, 2)])
def test_no_pass_draws_from_the_random_numbers_of_training(flower_snapshot, storage):
    batches = load_batches(flower_snapshot, "train", batch_size=3, storage=storage, augment="random_resized_crop")
    before = torch.get_rng_state()
    assert list(batches.shuffled(0)) and list(batches.ordered())
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_that_fit_memory_are_decoded_once(flower_snapshot, monkeypatch):
    decoded = []
    monkeypatch.setattr("ncflow.data.pictures.decode", lambda *inputs: decoded.append(inputs) or decode(*inputs))
    resident = load_batches(flower_snapshot, "train", batch_size=3)
    streamed = load_batches(flower_snapshot, "train", batch_size=3, storage=Storage(5 * 3 * 32 * 32 + 7, 2))
    count, passes = streamed.num_samples, [streamed.ordered(), streamed.shuffled(1), streamed.ordered()]
    expected = [resident.ordered(), resident.shuffled(1), resident.ordered()]
    decoded.clear()
    for number, (ours, theirs) in enumerate(zip(passes, expected, strict=True)):
        assert all(torch.equal(one, other) for (one, _), (other, _) in zip(ours, theirs, strict=True))
        assert len(decoded) == count + number * (count - 5)
    assert streamed.pictures.place == "decoded for each batch by 2 threads, but for 5 that stay in main memory"


def test_the_threads_that_decode_stay_over_all_epochs(flower_snapshot):
    batches = load_batches(flower_snapshot, "train", batch_size=3, storage=Storage(0, 2))
    found = set()
    for epoch in range(3):
        assert list(batches.shuffled(epoch))
        found |= {thread.ident for thread in threading.enumerate() if thread.name.startswith("pictures")}
    assert 1 <= len(found) <= 2


@pytest.mark.parametrize("storage", [Storage(2**30, 2), Storage(0, 2)])
def test_a_picture_that_cannot_be_decoded_is_named(flower_snapshot, storage, monkeypatch):
    def fail(content, mode):
        raise PictureDamaged("broken")

    monkeypatch.setattr("ncflow.data.pictures.decode", fail)
    with pytest.raises(SnapshotDamaged, match="train.parquet is damaged: row 0: broken"):
        list(load_batches(flower_snapshot, "train", storage=storage).ordered())


def test_an_older_run_has_its_rule_of_resizing(flower_snapshot):
    new, old, float32 = (
        torch.cat([images for images, _ in load_batches(flower_snapshot, "train", resizing=rule).ordered()])
        for rule in (None, "uint8", "float32")
    )
    assert torch.equal(new, old) and not torch.equal(new, float32)
    assert (new - float32).abs().max() < 1.01 / 255 / min(flower_snapshot.manifest["pixel_std"])


def test_without_a_choice_a_share_of_the_free_memory_holds_pixels(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr("ncflow.data.loaders.free_memory", lambda: 1000)
    assert [Storage().bytes_on(cpu), Storage().bytes_on(cpu, 2), Storage(7).bytes_on(cpu, 2)] == [250, 125, 7]
    monkeypatch.setattr("ncflow.data.loaders.free_memory", lambda: None)
    assert Storage().bytes_on(cpu) == 2 * 2**30
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (800, 1000))
    assert Storage().bytes_on(torch.device("cuda"), 2) == 400  # each process has its own device


def test_without_a_choice_the_processes_share_the_cpus(monkeypatch):
    monkeypatch.setattr("ncflow.data.loaders.num_cpus", lambda: 8)
    assert [Storage().threads(), Storage().threads(2), Storage().threads(16), Storage(workers=5).threads(2)] == [
        8,
        4,
        1,
        5,
    ]


@pytest.mark.parametrize("storage", [Storage(), Storage(0, 1)])
def test_random_crops_come_from_pictures_stored_with_a_margin(flower_snapshot, storage):
    crops = load_batches(flower_snapshot, "train", image_size=28, augment="random_resized_crop", storage=storage)
    plain = load_batches(flower_snapshot, "train", image_size=32, storage=storage)
    assert crops.augment.crop_size == 28
    for (images, _), (larger, _) in zip(crops.ordered(), plain.ordered(), strict=True):
        assert torch.equal(images, larger[..., 2:30, 2:30])  # the middle of 28·256/224 = 32 pixels
    for images, _ in crops.shuffled(1):
        assert images.shape[2:] == (28, 28)


def test_pictures_no_larger_than_their_crops_have_no_margin(digits):
    crops = load_batches(digits, "train", image_size=8, augment="random_resized_crop")
    assert crops.pictures.images.shape[2:] == (8, 8)


def test_the_byte_budget_decides_exactly(digits):
    needed = len(digits.targets("test")) * 32 * 32
    assert isinstance(load_batches(digits, "test", storage=Storage(needed)).pictures, Resident)
    assert isinstance(load_batches(digits, "test", storage=Storage(needed - 1)).pictures, Streamed)


def test_ordered_images_are_the_stored_ones_normalized_and_gray_thrice(digits):
    images = torch.cat([images for images, _ in load_batches(digits, "train", image_size=8, batch_size=50).ordered()])
    stored = np.stack([np.array(decode_image(content)) for content in digits.encoded_images("train")]) / 255
    (mean,), (std,) = digits.manifest["pixel_mean"], digits.manifest["pixel_std"]
    for channel in range(3):
        assert images[:, channel].numpy() == pytest.approx((stored - mean) / std, abs=1e-5)
    assert images.mean().item() == pytest.approx(0, abs=1e-4) and images.std().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 33, 300])
def test_normalized_numbers_are_those_of_the_definition_to_the_bit(channels, size):
    given = torch.randint(0, 256, (5, channels, size, size + 1), dtype=torch.uint8)
    mean, std = torch.rand(channels), torch.rand(channels)
    batches = replace(numbered(10, batch_size=4), pixel_mean=mean, pixel_std=std)
    expected = (given.float() / 255 - mean.view(-1, 1, 1)) / std.clamp_min(1 / 255).view(-1, 1, 1)
    for images in (given, given.contiguous(memory_format=torch.channels_last)):
        found = batches._normalized(images)
        assert torch.equal(found, expected.expand(-1, 3, -1, -1))
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_a_channel_that_never_changes_gives_finite_images():
    batches = replace(numbered(10, batch_size=4), pixel_std=torch.zeros(1))
    assert all(images.isfinite().all() for images, _ in batches.ordered())


@pytest.mark.parametrize("resizing", RESIZINGS)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (100, 64), (20, 47), (32, 32)])
def test_resizing_agrees_with_pillow(height, width, resizing):
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    ours = fit_square(torch.from_numpy(pixels).permute(2, 0, 1)[None], 32, resizing)[0].permute(1, 2, 0).numpy()
    scale = 32 / min(height, width)
    theirs = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (theirs.width - 32) // 2, (theirs.height - 32) // 2
    expected = np.array(theirs.crop((left, top, left + 32, top + 32)))
    assert np.abs(ours.astype(int) - expected.astype(int)).max() <= 1


def test_pictures_of_various_sizes_become_one_size(flower_snapshot):
    (images, targets), *rest = load_batches(flower_snapshot, "test", image_size=24).ordered()
    assert images.shape == (4, 3, 24, 24) and targets.tolist() == [0, 0, 1, 1] and not rest


@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_full_batch_is_the_whole_split_in_one_step(digits, num_processes):
    parts = [
        load_batches(digits, "train", batch_size=None, share=Share(i, num_processes)) for i in range(num_processes)
    ]
    assert [len(part) for part in parts] == [1] * num_processes
    steps = [list(part.shuffled(1)) for part in parts]
    assert sum(len(targets) for ((_, targets),) in steps) == sum(digits.class_counts)


def test_a_full_batch_that_does_not_fit_in_memory_is_refused(digits):
    count = sum(digits.class_counts)
    message = (
        f"full batch of {count} images of 32x32 takes {count * 1024} bytes, more than the 1000 that may stay in "
        "memory; use a smaller batch size, smaller images, or data.resident_bytes"
    )
    with pytest.raises(ValueError, match=message):
        load_batches(digits, "train", batch_size=None, storage=Storage(1000))


def test_an_unknown_augmentation_is_refused(digits):
    with pytest.raises(ValueError, match="Did you mean 'crop_flip'"):
        load_batches(digits, "train", augment="cropflip")
