from pathlib import Path

import pytest

from stage_rt.errors import DatasetError
from stage_rt.images.layouts import UNNAMED_TYPE, datasets, masks, masks_of_types, normals


def lay(root: Path, *files: str) -> Path:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def relative(root: Path, found):
    return [(str(image.relative_to(root)), str(mask.relative_to(root))) for image, mask in found]


def test_mvtec_masks_are_found_by_stem_whatever_the_suffix(tmp_path):
    root = lay(
        tmp_path / "bottle",
        "train/good/000.png",
        "test/good/000.png",
        "test/crack/000.jpg",
        "test/crack/001.jpg",
        "test/hole/000.jpg",
        "ground_truth/crack/000_mask.png",
        "ground_truth/crack/001.png",
        "ground_truth/hole/000_mask.png",
        "license.txt",
    )
    [dataset] = datasets(root)
    assert dataset.name == "bottle"
    assert dataset.normals == [root / "train/good/000.png"]
    assert list(dataset.defects) == ["crack", "hole"]
    assert relative(root, dataset.defects["crack"]) == [
        ("test/crack/000.jpg", "ground_truth/crack/000_mask.png"),
        ("test/crack/001.jpg", "ground_truth/crack/001.png"),
    ]


def test_btad_is_read(tmp_path):
    root = lay(tmp_path / "01", "train/ok/0.bmp", "test/ok/1.bmp", "test/ko/2.bmp", "ground_truth/ko/2.bmp")
    [dataset] = datasets(root)
    assert dataset.normals == [root / "train/ok/0.bmp"]
    assert relative(root, dataset.defects["ko"]) == [("test/ko/2.bmp", "ground_truth/ko/2.bmp")]
    assert list(dataset.defects) == ["ko"]


def test_visa_is_read(tmp_path):
    root = lay(
        tmp_path / "candle",
        "Data/Images/Normal/0000.JPG",
        "Data/Images/Anomaly/000.JPG",
        "Data/Masks/Anomaly/000.png",
        "image_anno.csv",
    )
    [dataset] = datasets(root)
    assert dataset.normals == [root / "Data/Images/Normal/0000.JPG"]
    assert relative(root, dataset.defects["Anomaly"]) == [
        ("Data/Images/Anomaly/000.JPG", "Data/Masks/Anomaly/000.png")
    ]
    assert list(dataset.defects) == ["Anomaly"]


def test_plain_folders_may_have_types_or_none(tmp_path):
    flat = lay(tmp_path / "flat", "good/a.png", "images/b.png", "masks/b.png")
    typed = lay(tmp_path / "typed", "good/a.png", "images/dent/b.png", "masks/dent/b_mask.png")
    assert relative(flat, datasets(flat)[0].defects[UNNAMED_TYPE]) == [("images/b.png", "masks/b.png")]
    assert relative(typed, datasets(typed)[0].defects["dent"]) == [
        ("images/dent/b.png", "masks/dent/b_mask.png")
    ]


def test_a_folder_of_objects_gives_them_all_and_passes_other_folders_over(tmp_path):
    lay(tmp_path, "b/train/good/0.png", "a/train/ok/0.png", "split_csv/1cls.csv", ".cache/train/good/0.png")
    assert [dataset.name for dataset in datasets(tmp_path)] == ["a", "b"]


def test_an_object_given_as_a_dot_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(lay(tmp_path / "screw", "train/good/0.png"))
    assert datasets(Path("."))[0].name == "screw"


def test_files_come_as_a_person_counts_without_hidden_and_foreign_ones(tmp_path):
    lay(tmp_path, "10.png", "2.png", "1.PNG", "b2.tif", "B10.jpeg", ".2.png", "Thumbs.db", "x.png/y.txt")
    expected = ["1.PNG", "2.png", "10.png", "b2.tif", "B10.jpeg"]
    assert [path.name for path in normals(tmp_path)] == expected
    assert [path.name for path in masks(tmp_path)] == expected


def test_digits_of_other_scripts_are_letters(tmp_path):
    lay(tmp_path, "\u06633.png", "10.png", "a3.png", "\u066310.png", "a\uff11.png")
    expected = ["10.png", "a3.png", "a\uff11.png", "\u06633.png", "\u066310.png"]
    assert [path.name for path in normals(tmp_path)] == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/0.png"], "`{root}` is in no known layout: arrange it as `train/good`, "),
        ([], "`{root}` is in no known layout: arrange it as `train/good`, "),
        (
            ["train/good/0.png", "test/crack/7.jpg", "ground_truth/crack/8_mask.png"],
            "`{root}/test/crack/7.jpg` has no mask: add `{root}/ground_truth/crack/7_mask.png` or remove it",
        ),
        (
            ["good/0.png", "images/7.png", "images/7_mask.png", "masks/7_mask.png"],
            "`{root}/images/7.png` and `{root}/images/7_mask.png` would have the same mask, `{root}/masks/7_",
        ),
        (
            ["train/good/0.png", "test/crack/7.jpg", "test/crack/7.png", "ground_truth/crack/7.png"],
            "`{root}/test/crack/7.jpg` and `{root}/test/crack/7.png` would have the same mask, ",
        ),
        (
            ["train/good/0.png", "test/crack/7.jpg", "ground_truth/crack/7.bmp", "ground_truth/crack/7.png"],
            "`{root}/ground_truth/crack/7.bmp` and `{root}/ground_truth/crack/7.png` would both be the mask of ",
        ),
        (
            ["good/0.png", "images/7.png", "masks/7.png", "images/damaged/8.png", "masks/damaged/8.png"],
            "`{root}/images` holds photographs beside the folder `damaged`, which is their type: move ",
        ),
        (
            ["train/good/0.png", "test/crack/7.jpg"],
            "`{root}/test/crack/7.jpg` has no mask: add `{root}/ground_truth/crack/7_mask.png` or remove it",
        ),
    ],
)
def test_an_unusable_data_set_is_refused_with_the_fix(tmp_path, files, message):
    lay(tmp_path, *files)
    with pytest.raises(DatasetError) as refused:
        datasets(tmp_path)
    assert str(refused.value).startswith(message.format(root=tmp_path))


def test_a_missing_data_set_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="nowhere` is not a folder: give the folder of a data set"):
        datasets(tmp_path / "nowhere")


@pytest.mark.parametrize("find", [normals, masks])
def test_a_folder_without_images_is_refused_with_the_fix(tmp_path, find):
    lay(tmp_path, "set/train/readme.txt", "set/train/good/0.png", "0.webp", "phone/1.HEIC", "phone/2.HEIC")
    (tmp_path / "empty").mkdir()
    for folder, message in [
        (
            tmp_path,
            "holds no PNG, JPEG, BMP or TIFF files: convert pictures that are `.webp` to one of those",
        ),
        (tmp_path / "phone", "TIFF files: convert pictures that are `.HEIC` to one of those"),
        (tmp_path / "empty", "holds no PNG, JPEG, BMP or TIFF files: put the files directly into it"),
        (tmp_path / "set/train", f"did you mean `{tmp_path}/set/train/good`"),
        (tmp_path / "nowhere", "is not a folder: give a folder of PNG, JPEG, BMP or TIFF files"),
        (tmp_path / "0.webp", "is not a folder: give a folder of PNG, JPEG, BMP or TIFF files"),
    ]:
        with pytest.raises(DatasetError) as refused:
            find(folder)
        assert str(refused.value).startswith(f"`{folder}` ")
        assert str(refused.value).endswith(message)


def test_the_folder_that_is_meant_is_told(tmp_path):
    lay(tmp_path, "part/train/good/0.png", "part/test/crack/0.png")
    lay(tmp_path, *(f"part/ground_truth/{kind}/0_mask.png" for kind in ("crack", "hole", "stain")))
    truth = tmp_path / "part/ground_truth"
    for find, folder, fix in [
        (normals, tmp_path / "part", f"did you mean `{tmp_path}/part/train/good`"),
        (lambda folder: masks(folder, "hole"), tmp_path / "part", f"did you mean `{truth}/hole`"),
        (lambda folder: masks(folder, "hole"), truth, f"did you mean `{truth}/hole`"),
        (masks, truth, f"did you mean `{truth}/crack` or `{truth}/hole` or `{truth}/stain`"),
        (masks, tmp_path / "part", "put the files directly into it"),
    ]:
        with pytest.raises(DatasetError) as refused:
            find(folder)
        assert refused.value.remedy == fix


def test_masks_are_found_by_the_types_that_their_folders_are_called_after(tmp_path):
    lay(
        tmp_path,
        "masks/crack/0_mask.png",
        "masks/other/0_mask.png",
        "masks/hole",
        "part/ground_truth/hole/0.png",
    )
    types = ["crack", "hole"]
    found = masks_of_types(tmp_path / "masks", types)
    assert found == {"crack": [tmp_path / "masks/crack/0_mask.png"]}
    none = "holds no folder that is called after a type of defect (crack, hole): "
    for folder, told in [
        ("nosuch", "is not a folder: give one that holds a folder of masks for each type"),
        ("masks/crack", f"{none}did you mean `{tmp_path}/masks`"),
        ("part", f"{none}did you mean `{tmp_path}/part/ground_truth`"),
        ("masks/other", f"{none}did you mean `{tmp_path}/masks`"),
        ("part/ground_truth/hole", f"{none}did you mean `{tmp_path}/part/ground_truth`"),
        (".", f"{none}put its masks into one, as `{tmp_path}/crack`"),
    ]:
        with pytest.raises(DatasetError) as refused:
            masks_of_types(tmp_path / folder, types)
        assert str(refused.value) == f"`{tmp_path / folder}` {told}"
