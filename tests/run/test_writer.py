import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from stage_rt.errors import PromptError
from stage_rt.run.writer import defect_type, pair_paths, png, write_pair

RNG = np.random.default_rng(0)
PROMPT = "tile+hole"


def test_the_defect_type_is_what_follows_the_last_plus():
    assert defect_type("tile+hole") == "hole"
    assert defect_type("a+b+large hole") == "large hole"
    assert defect_type("damaged") == "damaged"
    assert pair_paths("tile+hole", 7) == ("test/hole/000007.png", "ground_truth/hole/000007_mask.png")


@pytest.mark.parametrize(
    "prompt", ["tile+", "", "tile+../x", "tile+a/b", "tile+a\\b", "tile+..", "tile+.", "tile+.x", "a\0"]
)
def test_a_prompt_that_names_no_folder_is_refused(prompt):
    with pytest.raises(PromptError, match="does not end in a name a folder can have: rename it in the model"):
        defect_type(prompt)


def test_a_pair_is_written_as_it_is(tmp_path):
    digests = write_pair(tmp_path, ("i/0.png", "m/0.png"), b"image", b"mask")
    assert [(tmp_path / path).read_bytes() for path in ("i/0.png", "m/0.png")] == [b"image", b"mask"]
    assert digests == tuple(hashlib.sha256(content).hexdigest() for content in (b"image", b"mask"))


def test_a_picture_is_encoded_without_loss():
    image = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(Image.fromarray(image))))), image)


def test_a_mask_does_not_stay_without_its_image(tmp_path):
    (tmp_path / "i").write_text("a file where a folder is needed")
    with pytest.raises(OSError, match="i"):
        write_pair(tmp_path, ("i/0.png", "m/0.png"), b"image", b"mask")
    assert list((tmp_path / "m").iterdir()) == []
