"""Bugs in optimizers and schedule."""

FORMULA = "optim/test_adamw.py::test_adamw_is_its_formula"
MUON = "optim/test_muon.py::test_steps_are_those_of_the_formulas"
COSINE = "optim/test_schedule.py::test_a_cosine_is_that_of_nanogpt"

MUTANTS = {
    "minigpt/optim::AdamW.update": [
        (
            "each part decays as if it were the first",
            "min(max(self.params.decayed - start, 0), stop - start)",
            "min(self.params.decayed, stop - start)",
            "optim/test_adamw.py::test_ranges_in_any_order_make_the_same_step",
        ),
    ],
    "minigpt/optim::Muon._step_layers": [
        (
            "steps of tall and wide matrices are not alike",
            "max(group.rows, group.columns)",
            "min(group.rows, group.columns)",
            MUON,
        ),
        ("momentum without a look ahead", "g += self.momentum * m", "g = 1 * m", MUON),
    ],
    "minigpt/optim::adamw_step": [
        (
            "no bias correction of the second moment",
            "m_new / debias(beta1, step), v_new / debias(beta2, step)",
            "m_new / debias(beta1, step), v_new",
            FORMULA,
        ),
        (
            "gains decay too",
            "p_new[:decayed] *= 1 - lr * weight_decay",
            "p_new *= 1 - lr * weight_decay",
            FORMULA,
        ),
        (
            "decay added to the gradient's moment",
            "m_new = beta1 * m + (1 - beta1) * g",
            "m_new = beta1 * m + (1 - beta1) * (g + weight_decay * p)",
            FORMULA,
        ),
        (
            "a step that overflowed is taken",
            "x[...] = xp.where(taken, new, x)",
            "x[...] = new",
            "optim/test_adamw.py::test_a_scale_that_is_not_finite_changes_no_bit",
        ),
    ],
    "minigpt/optim::clip": [
        (
            "the scale of a step is that of the next one",
            "factor / loss_scale",
            "factor",
            "optim/test_adamw.py::test_mixed_precision_skips_what_overflowed_and_goes_on",
        ),
        (
            "a step whose loss is not finite is taken",
            "norm = norm + 0.0 * loss",
            "norm = norm + 0.0",
            "optim/test_adamw.py::test_a_step_whose_loss_is_not_finite_is_skipped",
        ),
        (
            "clipping makes short gradients longer",
            "xp.minimum(1.0, max_norm / (norm + 1e-6))",
            "(max_norm / (norm + 1e-6))",
            "optim/test_adamw.py::test_clipping_brings_the_norm_to_its_limit_and_never_up",
        ),
        (
            "the norm of the scaled gradient",
            "xp.sqrt(sq_norm_parts.sum()) / loss_scale",
            "xp.sqrt(sq_norm_parts.sum())",
            "optim/test_adamw.py::test_clipping_brings_the_norm_to_its_limit_and_never_up",
        ),
        (
            "the loss scale doubles a step late",
            "good_steps == growth",
            "good_steps > growth",
            "optim/test_adamw.py::test_the_loss_scale_halves_on_overflow_and_doubles_after_good_steps",
        ),
    ],
    "minigpt/optim::learning_rate": [
        (
            "warm-up counts as a part of the fall",
            "progress = (step - warmup) / (last - warmup) if",
            "progress = step / last if",
            COSINE,
        ),
        (
            "the warm-up begins a step late",
            "up = lr * (step + 1) / (warmup + 1)",
            "up = lr * step / (warmup + 1)",
            COSINE,
        ),
        (
            "the fall ends at 0, not at min_lr",
            "down = config.min_lr + fraction * (lr - config.min_lr)",
            "down = fraction * lr",
            COSINE,
        ),
    ],
    "minigpt/optim::describe": [
        (
            "the warm-up of a run by passes is said to be longer than it is",
            "min(warmup, math.ceil(WARMUP_FRACTION * steps))",
            "warmup",
            "train/test_limits.py::test_a_warm_up_longer_than_a_tenth_of_the_passes_is_over_then",
        ),
    ],
    "minigpt/optim::budget_used": [
        (
            "a run by the clock leaves no time for its end",
            "available = max_seconds - reserve",
            "available = max_seconds",
            "optim/test_schedule.py::test_the_budget_leaves_time_for_what_comes_after_the_last_step",
        ),
    ],
    "minigpt/optim::group_matrices": [
        (
            "q, k and v as one matrix",
            '{"c_attn": 3, "c_kv": 2}.get(name.split(".")[-2], 1)',
            "1",
            MUON,
        ),
    ],
    "minigpt/optim::weight_decay": [
        (
            "a model of a tiny text decays to nothing",
            "min(a_pass * per_step, MOST)",
            "a_pass * per_step",
            "optim/test_schedule.py::test_weight_decay_leaves_a_model_of_a_tiny_text_alive",
        ),
    ],
}
