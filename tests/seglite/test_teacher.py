"""Teacher: the moving average to the last digit, no gradient, evaluation mode, checkpoints, wrapped students."""
import io

import pytest
import torch
from torch import nn

from seglite.teacher import Teacher, unwrap
from tests.tolerances import assert_close


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def wander(net, seed):
    """Change every weight and statistic as a training step would."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.1)
    net.train()(torch.randn(4, 3, 8, 8, generator=g))
    return net


@pytest.mark.parametrize("ramp", [True, False], ids=["ramp", "no ramp"])
def test_the_average_written_a_second_time(ramp):
    net = student()
    teacher = Teacher(net, decay=0.7, ramp=ramp)
    expected = {k: v.clone().double() for k, v in net.state_dict().items()}
    for step in range(6):
        wander(net, step)
        teacher.update(net)
        d = min(0.7, step / (step + 1)) if ramp else 0.7
        for k, v in net.state_dict().items():
            expected[k] = d * expected[k] + (1 - d) * v.double() if v.is_floating_point() else v.double()
    for k, v in teacher.model.state_dict().items():
        assert (v.double() - expected[k]).abs().max() <= 1e-7 * max(1.0, expected[k].abs().max()), k
    assert int(teacher.model[1].num_batches_tracked) == 6
    assert teacher.step == 6


def test_the_first_update_copies_the_student_exactly():
    net = student()
    teacher = Teacher(net)
    teacher.update(wander(net, 1))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in teacher.model.state_dict().items())


@pytest.mark.parametrize("decay", [None, 1.0])
def test_frozen_copy_never_moves(decay):
    net = student()
    teacher = Teacher(net, decay=decay)
    before = {k: v.clone() for k, v in teacher.model.state_dict().items()}
    teacher.update(wander(net, 1))
    assert all(torch.equal(v, before[k]) for k, v in teacher.model.state_dict().items())


def test_never_a_gradient():
    net = student()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    teacher = Teacher(net)
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    image = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert not teacher(image).requires_grad
    both = nn.ModuleDict({"student": net, "teacher": teacher}).requires_grad_(True)  # a careless owner
    assert not both["teacher"](image).requires_grad
    teacher.update(net)
    assert all(p.grad is not None for p in net.parameters())


def test_always_in_evaluation_mode():
    net = student().train()
    teacher = Teacher(net)
    owner = nn.ModuleDict({"student": net, "teacher": teacher}).train()
    assert owner["student"].training and not any(m.training for m in teacher.modules())
    image = torch.randn(2, 3, 8, 8)
    before = teacher.model[1].running_mean.clone()
    assert torch.equal(teacher(image), teacher(image))  # no dropout
    assert torch.equal(teacher.model[1].running_mean, before)
    assert net.training  # copying did not switch the student


def test_student_and_teacher_share_no_memory():
    net = student()
    teacher = Teacher(net)
    owned = {v.data_ptr() for v in net.state_dict().values()}
    assert not owned & {v.data_ptr() for v in teacher.model.state_dict().values()}


def test_checkpoint_continues_the_ramp():
    net = student()
    one = Teacher(net)
    for step in range(3):
        one.update(wander(net, step))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two = Teacher(student(seed=9))
    two.load_state_dict(torch.load(file, weights_only=True))
    assert two.step == 3
    wander(net, 3)
    one.update(net)
    two.update(net)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_compiled_students_are_unwrapped():
    net = student()
    wrapped = torch.compile(net)
    teacher = Teacher(wrapped)
    assert unwrap(wrapped) is net and type(teacher.model) is nn.Sequential
    teacher.update(wrapped)
    assert_close(teacher.model[0].weight, net[0].weight)


def test_distributed_students_are_unwrapped(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        net = student()
        wrapped = nn.parallel.DistributedDataParallel(net)
        teacher = Teacher(torch.compile(wrapped))
        assert unwrap(torch.compile(wrapped)) is net and type(teacher.model) is nn.Sequential
        wander(net, 0)
        teacher.update(wrapped)
        assert torch.equal(teacher.model[0].weight, net[0].weight)
    finally:
        torch.distributed.destroy_process_group()


def test_buffers_outside_the_state_dict_follow_too():
    net = student()
    net.register_buffer("scale", torch.tensor(1.0), persistent=False)
    teacher = Teacher(net, decay=0.5, ramp=False)
    net.scale.fill_(3.0)
    teacher.update(net)
    assert float(teacher.model.scale) == 2.0


def test_impossible_requests_are_refused():
    with pytest.raises(ValueError, match=r"decay=1\.5: .*lies in \[0, 1\]"):
        Teacher(student(), decay=1.5)
    with pytest.raises(ValueError, match=r"5 names on one side only, first '1\.bias'"):
        Teacher(student()).update(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.Conv2d(4, 2, 1)))
