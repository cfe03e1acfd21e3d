"""The researcher's page says what the code has."""

import re
from pathlib import Path

from anl_kernels import presets

PAGE = Path(__file__).parents[2] / "docs" / "label_noise.md"


def test_the_table_of_presets_is_the_list():
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([\w,. -]+) \|$", PAGE.read_text("utf-8"), re.M)
    listed = {name: data_sets.split(", ") for name, data_sets in rows}
    known = {}
    for preset in presets.list():
        known.setdefault(preset.name, []).append(preset.dataset)
    assert listed == known
