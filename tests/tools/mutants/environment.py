"""Bugs in what depends on the machine and on what is installed: cores, pictures."""

GRANTED = (
    "backend/test_backend.py::"
    "test_one_module_is_taken_for_granted_in_one_thread_while_the_context_lasts"
)
CORES = "backend/test_cores.py::"
ATTENTION, PICTURE = "report/test_attention.py::", "report/test_picture.py::"

MUTANTS = {
    "minigpt/backend::_types": [
        (
            "arrays in a tuple may be of another module than at the first call",
            "types += map(type, x)",
            "pass",
            "backend/test_backend.py::test_arrays_of_both_backends_are_refused_by_name",
        ),
    ],
    "minigpt/backend::all_arrays_on": [
        (
            "a module is taken for granted for ever",
            "finally: _granted.xp = before",
            "finally: pass",
            GRANTED,
        ),
    ],
    "minigpt/backend::_Granted": [
        (
            "a module is taken for granted in all threads",
            "threading.local",
            "object",
            GRANTED,
        ),
    ],
    "minigpt/backend::check_gpu": [
        (
            "a V100 may have CUDA 13",
            "if capability < CUDA13_CAPABILITY",
            "if capability < 70",
            "backend/test_backend.py::test_what_is_wrong_with_cupy_is_told_in_one_line",
        ),
        (
            "the oldest GPU that CUDA 13 compiles for may not have it",
            "if capability < CUDA13_CAPABILITY",
            "if capability <= CUDA13_CAPABILITY",
            "backend/test_backend.py::test_a_cupy_that_works_is_returned",
        ),
    ],
    "minigpt/backend::capability": [
        (
            "the wheel is that of the newest GPU",
            "return min(found, default=None)",
            "return max(found, default=None)",
            "backend/test_doctor.py::test_the_wheel_fits_the_gpu",
        ),
    ],
    "minigpt/backend::core_limit": [
        (
            "the environment is no limit",
            "[*cores_there_are(), *cores_asked_for()]",
            "[*cores_there_are()]",
            CORES + "test_the_environment_is_a_limit",
        ),
    ],
    "minigpt/backend::cores_there_are": [
        (
            "a quota is rounded down",
            "math.ceil(quota)",
            "int(quota)",
            CORES + "test_a_quota_is_rounded_up",
        ),
    ],
    "minigpt/backend::cpu_quota": [
        (
            "the quotas of the groups around are not seen",
            "for n in range(len(parts) + 1)",
            "for n in [len(parts)]",
            CORES + "test_the_quota_of_a_container",
        ),
    ],
    "minigpt/backend::group_quota": [
        (
            "no quota of version 1 is a limit",
            "if quota > 0 else None",
            "",
            CORES + "test_the_quota_of_a_container",
        ),
    ],
    "minigpt/report::as_text": [
        (
            "a wide token has a narrow shade",
            "shade * n for shade, n",
            "shade for shade, n",
            ATTENTION + "test_names_stand_above_their_shades_whatever_their_width",
        ),
    ],
    "minigpt/report::drawing": [
        (
            "what matplotlib raises ends the program",
            "except Exception as error:",
            "except ImportError as error:",
            PICTURE + "test_whatever_fails_is_one_line",
        ),
    ],
    "minigpt/report::fonts_for": [
        (
            "a character that no font has is a box",
            "return families, missing",
            "return families, set()",
            ATTENTION + "test_what_no_font_has_is_an_escape_in_the_picture",
        ),
        (
            "a font that is found is not used",
            "families.append(name)",
            "pass",
            ATTENTION + "test_a_font_that_has_a_character_is_found",
        ),
    ],
    "minigpt/report::save": [
        (
            "every picture is a PNG",
            "format=Path(path).suffix[1:].lower()",
            'format="png"',
            ATTENTION + "test_a_picture_has_the_format_of_its_ending",
        ),
    ],
    "minigpt/report::grid_columns": [
        (
            "the panels are one strip",
            "return min(whole, key=distance)",
            "return heads",
            ATTENTION + "test_the_grid_fits_a_page",
        ),
    ],
}
