"""A recording larger than the memory that its process may have: written, checked, read in slices and shuffled."""

import subprocess
import sys

ROWS, WIDTH, ALLOWED = 40_960, 2048, 128 << 20  # 336 MB of float32; what a process may have beyond its imports

PROGRAM = f"""
import resource, sys
from pathlib import Path
import torch
from scope.activations.config import HarvestConfig
from scope.activations.harvest.harvest import harvest
from scope.activations.harvest.repair import examine
from scope.activations.read.store import ActivationStore
from tests.activations.toy import ByteTokenizer, numbers

class Wide:
    def sites(self):
        return {{"wide": {WIDTH}}}

    def record(self, tokens, sites):
        return {{"wide": tokens[..., None].float() + torch.arange({WIDTH}) / 8192}}

torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
data = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (data + {ALLOWED},) * 2)

out = Path(sys.argv[1])
form = dict(context=64, batch_contexts=4, shard_rows=8192, dtype="float32", exclude=())
config = HarvestConfig(sites=("wide",), tokens={ROWS}, **form)
harvest(Wide(), ByteTokenizer(), numbers(2000), config, out, {{"model": "wide"}})
assert examine(out).damaged == []
store = ActivationStore.open(out)
assert store.n_rows * {WIDTH} * 4 > 2 * {ALLOWED}
for start in range(0, store.n_rows, 1000):
    assert torch.equal(store["wide"][start : start + 1000][:, 0].int(), torch.from_numpy(store.token_ids[start : start + 1000]))
seen = 0
for batch in store.shuffled("wide", 512, epochs=1, memory_bytes=32 << 20):
    seen += len(batch)
assert seen == store.n_rows
try:
    store["wide"][:]
except (MemoryError, RuntimeError):
    print("bounded")
"""


def test_a_recording_larger_than_memory_is_written_checked_and_shuffled(tmp_path):
    ended = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / "r")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "bounded\n"  # the limit is one that loading all of it breaks
