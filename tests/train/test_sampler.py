"""The plan of batches: everything once per epoch, the same for any number of processes, from any step."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rsbackbones.train.engine.sampler import BatchPlan, StepSampler


@st.composite
def plans(draw):
    batch_size = draw(st.sampled_from([1, 2, 4, 6, 12]))
    count = draw(st.integers(1, 3))
    repeats = tuple(draw(st.integers(1, 3)) for _ in range(count))
    lengths = tuple(draw(st.integers(-(-batch_size // r), 60)) for r in repeats)
    blocks = tuple(draw(st.sampled_from([1, 1, 3, 7])) for _ in range(count))
    return BatchPlan(
        lengths=lengths, repeats=repeats, blocks=blocks, batch_size=batch_size, seed=draw(st.integers(0, 9))
    )


def batches_of(plan, epoch):
    return [plan.batch(epoch * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)]


@given(plans(), st.integers(0, 3))
@settings(max_examples=60)
def test_an_epoch_covers_every_sample_once_per_repeat(plan, epoch):
    batches = batches_of(plan, epoch)
    assert all(len(batch) == plan.batch_size for batch in batches)
    assert all(len({key[:2] for key in batch}) == 1 for batch in batches)  # of one source
    assert {key[0] for batch in batches for key in batch} == {epoch}
    for source, (length, repeat) in enumerate(zip(plan.lengths, plan.repeats, strict=True)):
        seen = Counter(key[2] for batch in batches for key in batch if key[1] == source)
        assert set(seen) <= set(range(length))
        assert seen.total() == length * repeat // plan.batch_size * plan.batch_size
        assert max(seen.values()) <= repeat
        # Only what the last, partial batch would have held is missing.
        assert sum(repeat - seen[i] for i in range(length)) == length * repeat % plan.batch_size


@given(plans(), st.sampled_from([(1, 1), (2, 1), (1, 2), (3, 2), (2, 3), (4, 1), (12, 1)]), st.data())
@settings(max_examples=60)
def test_processes_divide_the_same_global_batch(plan, divided, data):
    world_size, accumulate = divided
    end = 2 * plan.steps_per_epoch
    start = data.draw(st.integers(0, end))

    def sampler(rank, first=start):
        return StepSampler(
            plan, start=first, stop=end, rank=rank, world_size=world_size, accumulate=accumulate
        )

    if plan.batch_size % (world_size * accumulate):
        with pytest.raises(ValueError, match=f"batch_size {plan.batch_size}.*{world_size} processes"):
            sampler(0)
        return
    pieces = [list(sampler(rank)) for rank in range(world_size)]
    assert (
        [len(p) for p in pieces]
        == [len(sampler(0))] * world_size
        == [(end - start) * accumulate] * world_size
    )
    for i, step in enumerate(range(start, end)):
        passes = range(i * accumulate, (i + 1) * accumulate)
        # Pass by pass, in it process by process, this is the batch.
        assert [key for p in passes for rank in pieces for key in rank[p]] == plan.batch(step)
    whole = list(sampler(world_size - 1, first=0))
    assert whole[start * accumulate :] == pieces[-1]  # what a resumed run gets is what it would have got


def test_the_dates_of_a_place_in_a_file_come_in_different_passes():
    plan = BatchPlan(lengths=(640 * 4,), repeats=(1,), blocks=(8,), frames=(4,), batch_size=64, seed=3)
    steps = [[index for _, _, index in plan.batch(step)] for step in range(plan.steps_per_epoch)]
    assert sorted(i for batch in steps for i in batch) == list(range(640 * 4))
    for batch in steps:
        assert len({i // 4 for i in batch}) == 64  # no place is its own negative
        assert len({i // 4 // 8 for i in batch}) <= 32  # and few files are open
    assert {i % 4 for i in steps[0]} == {0, 1, 2, 3}


@given(st.integers(2, 12), st.integers(0, 5))
@settings(max_examples=30)
def test_files_are_read_together(block, seed):
    """Of 40 files, batches of as many samples as 16 files hold are made of 16 whole files each."""
    window = 16 * block
    plan = BatchPlan(lengths=(40 * block,), repeats=(1,), blocks=(block,), batch_size=window, seed=seed)
    batches = [[key[2] for key in batch] for batch in batches_of(plan, 0)]
    assert len(batches) == 2
    for batch in batches:
        assert set(Counter(i // block for i in batch).values()) == {block}
        assert [i // block for i in batch] != sorted(i // block for i in batch)  # shuffled together
    assert sorted(batches[0]) != list(range(window))  # the files are shuffled, too


def test_epochs_repeats_and_seeds_differ():
    plan = BatchPlan(lengths=(40, 40), repeats=(2, 1), blocks=(1, 10), batch_size=4, seed=0)
    other = BatchPlan(lengths=(40, 40), repeats=(2, 1), blocks=(1, 10), batch_size=4, seed=1)
    epochs = [[k[1:] for b in batches_of(p, e) for k in b] for p in (plan, other) for e in (0, 1)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    sources = [batch[0][1] for batch in batches_of(plan, 0)]
    assert sources != sorted(sources)  # batches of the sources take turns


def test_a_source_smaller_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"source 1 has 3 samples, 2 times an epoch.*batch of 8"):
        BatchPlan(lengths=(20, 3), repeats=(1, 2), blocks=(1, 1), batch_size=8, seed=0)


# -- tasks ------------------------------------------------------------------------------------------------

SCHEDULES = ("proportional", "alternate", "random")


@st.composite
def task_plans(draw, schedules=SCHEDULES):
    """Plans of up to three tasks over up to four sources; every task has one."""
    count = draw(st.integers(1, 3))
    names = tuple("abc"[:count])
    more = draw(st.lists(st.sampled_from(names), max_size=1))
    tasks = tuple(draw(st.permutations([*names, *more])))
    lengths = tuple(draw(st.integers(6, 40)) for _ in tasks)
    return BatchPlan(
        lengths=lengths, repeats=(1,) * len(tasks), blocks=(1,) * len(tasks), batch_size=6,
        seed=draw(st.integers(0, 9)), tasks=tasks, task_names=names,
    schedule=draw(st.sampled_from(schedules)), )  # fmt: skip


@given(task_plans(), st.integers(0, 300))
@settings(max_examples=60)
def test_a_batch_is_of_its_steps_task(plan, step):
    (source,) = {key[1] for key in plan.batch(step)}
    assert plan.tasks[source] == plan.task(step)
    if plan.schedule == "alternate":
        assert plan.task(step) == plan.task_names[step % len(plan.task_names)]


@given(task_plans())
@settings(max_examples=40)
def test_mixing_in_proportion_is_what_it_is_without_tasks(plan):
    plain = replace(plan, tasks=(), task_names=("",), schedule="proportional")
    for step in range(2 * plan.steps_per_epoch):
        assert replace(plan, schedule="proportional").batch(step) == plain.batch(step)
    alone = replace(plan, tasks=("a",) * len(plan.tasks), task_names=("a",))
    for schedule in SCHEDULES:  # and of one task there is one order
        one = replace(alone, schedule=schedule)
        assert [one.batch(step) for step in range(30)] == [plain.batch(step) for step in range(30)]
        assert one.epochs(30) == {"a": pytest.approx(30 / plain.steps_per_epoch)}


@given(task_plans(("alternate", "random")), st.integers(50, 150))
@settings(max_examples=40)
def test_every_task_goes_over_its_own_sources_epoch_by_epoch(plan, steps):
    """A plain loop that remembers: each task counts its own steps, whatever the others do."""
    counts = dict.fromkeys(plan.task_names, 0)
    seen = {}
    for step in range(steps):
        task = plan.task(step)
        sources = [i for i, name in enumerate(plan.tasks) if name == task]
        per_epoch = sum(plan.lengths[i] // plan.batch_size for i in sources)
        assert plan.epochs(step)[task] == pytest.approx(counts[task] / per_epoch)
        keys = plan.batch(step)
        assert {key[0] for key in keys} == {counts[task] // per_epoch}
        for key in keys:
            assert key not in seen.setdefault((task, key[0]), set())  # once an epoch
            seen[task, key[0]].add(key)
        counts[task] += 1
    for (task, epoch), keys in seen.items():
        per_epoch = sum(
            n // plan.batch_size for n, t in zip(plan.lengths, plan.tasks, strict=True) if t == task
        )
        if counts[task] >= (epoch + 1) * per_epoch:
            assert len(keys) == per_epoch * plan.batch_size


def test_a_small_task_goes_over_more_epochs_of_its_own():
    plan = BatchPlan(
        lengths=(400, 40), repeats=(1, 1), blocks=(1, 1), batch_size=4, seed=0, tasks=("large", "small"),
        task_names=("large", "small"), schedule="alternate",
    )  # fmt: skip
    assert plan.steps_per_epoch == 110
    assert plan.epochs(110) == {"large": 0.55, "small": 5.5}
    assert replace(plan, schedule="proportional").epochs(220) == {"large": 2, "small": 2}
    drawn = replace(plan, schedule="random")
    tasks = [drawn.task(step) for step in range(10_000)]
    assert 0.48 < tasks.count("small") / len(tasks) < 0.52
    assert tasks[5000:5100] == [replace(drawn).task(step) for step in range(5000, 5100)]  # from any step
    assert drawn.epochs(9_000)["small"] == tasks[:9_000].count("small") / 10
    assert tasks != [replace(drawn, seed=1).task(step) for step in range(10_000)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_task_without_sources_is_refused(schedule):
    common = {"repeats": (1, 1), "lengths": (8, 8), "blocks": (1, 1), "batch_size": 4, "seed": 0}
    with pytest.raises(ValueError, match=r"no source is for the task b .*give it a source, or leave it out"):
        BatchPlan(**common, tasks=("a", "a"), task_names=("a", "b"), schedule=schedule)
    for tasks in ((), ("a",), ("a", "c")):
        with pytest.raises(ValueError, match="each of 2 sources needs one of them"):
            BatchPlan(**common, tasks=tasks, task_names=("a", "b"), schedule=schedule)
    with pytest.raises(ValueError, match="one source or more"):
        BatchPlan(lengths=(), repeats=(), blocks=(), batch_size=4, seed=0)
