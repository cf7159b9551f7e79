import pytest

from neurotome.modality import candidates, is_bids_name, is_no_scan, mentioned


@pytest.mark.parametrize(
    ("stem", "contrasts"),
    [
        ("sub-01_T1w", ("T1w",)),
        ("sub-01_acq-t2_rec-norm_run-1_T1w", ("T1w",)),
        ("sub-01.b_acq-1.5mm_T2w", ("T2w",)),
        ("sub-01_ce-gadolinium_T1w", ("T1c",)),
        ("sub-01_space-MNI_T1w", ("T1w",)),
        ("sub-01_t1", ("T1w",)),
        ("IXI012-HH-1211-T1", ("T1w",)),
        ("patient_T1_T2", ("T1w", "T2w")),
        ("p1.5_flair", ("FLAIR",)),
        ("GM_T1", ("T1w",)),  # initials
        ("c1_T1", ("T1w",)),  # control 1
    ],
)
def test_names_of_scans(stem, contrasts):
    assert candidates(stem) == contrasts
    assert not is_no_scan(stem)


@pytest.mark.parametrize(
    "stem",
    [
        "sub-01_acq-mprage_T1map", "sub-01_mod-T1w_defacemask", "sub-01_acq-mprage_dseg", "sub-01_acq-T1w_MPM",
        "sub-01_acq-mprage_UNIT1", "sub-01_acq-T2w_desc-brain_mask", "sub-01_acq-t1_label-GM_probseg",
        "sub-01_acq-t1_inv-1_MP2RAGE", "sub-01_acq-t2_T2starw", "tpl-MNI152NLin2009cAsym_res-01_T1w", "MNI152_T1_1mm",
        "patient_T1_gm", "patient_T1_brain_pve_0", "T1_synthseg", "T1_map", "T1_to_MNI_warp", "T1_brainmask", "T1_roi",
        "mwp1sub-01_T1w", "c2sub-01_T1w", "y_sub-01_T1w", "T1.gm", "flair-WMH", "t1_wmparc", "t2_tumour",
    ],
)  # fmt: skip
def test_names_of_masks_maps_and_templates(stem):
    assert candidates(stem) == ()
    assert is_no_scan(stem)


def test_the_grammar_of_bids_is_strict():
    assert [is_bids_name(s) for s in ("sub-1_T1w", "sub-1_run-2_T1w", "sub-1_T1w_brain", "sub-1", "a_T1w")] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_a_text_mentions_contrasts():
    assert mentioned("t1_mprage_sag p2 iso") == ("T1w",)
    assert mentioned("localizer") == ()
