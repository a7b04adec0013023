"""A run that moves to other devices reads the same and learns the same."""

import pytest
import runs

_MOVES = {
  '1 to 8 to 2': [
    ['cpu_devices=1', 'data=1'],
    ['cpu_devices=8', 'data=2', 'fsdp=2', 'tensor=2'],
    ['cpu_devices=2', 'data=2'],
  ],
  'fsdp to tensor to data': [
    ['cpu_devices=4', 'data=1', 'fsdp=4'],
    ['cpu_devices=2', 'data=1', 'tensor=2'],
    ['cpu_devices=4', 'data=4'],
  ],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', _MOVES)
def test_other_devices(tmp_path, text, straight, name):
  workdir = tmp_path / 'run'
  for mesh, stop in zip(_MOVES[name], (20, 40, 0), strict=True):
    process = runs.start(
      'train',
      *runs.flags(text, *runs.SAMPLED, f'train.stop_at_step={stop}'),
      *(f'--config.mesh.{item}' for item in mesh),
      f'--workdir={workdir}',
    )
    stderr = runs.finish(process)
    assert process.returncode == 0, stderr
  runs.same_course(workdir, straight)
