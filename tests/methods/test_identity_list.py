"""The list of identities: what each method's definition implies, and the tests that hold it to that.

Not a test of numbers: it keeps the list whole. A name that no test has any more, or a method without an entry, fails.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from nplora.methods import known_methods

TESTS = Path(__file__).resolve().parents[1]
POSITIONS, NP, VARIANTS = "laws/test_np_positions.py", "laws/test_np.py", "methods/test_np_variants.py"
OWN, DENSE, PEFT, BLOCKS = (
    "methods/test_identities.py", "methods/test_dense.py", "methods/test_peft.py", "methods/test_blocks.py",
)  # fmt: skip
ORDER, CALIBRATION, LAWS = "laws/test_priorities.py", "laws/test_calibration.py", "laws/test_methods.py"
COMPRESSION, EVERY, KLORA, PAGES = (
    "laws/test_compression.py", "laws/test_every_method.py", "methods/test_klora.py", "methods/test_pages.py",
)  # fmt: skip

# method (or what is said of all) -> identity -> where it is tested
IDENTITIES: dict[str, dict[str, tuple[str, str]]] = {
    "np": {
        "mu = 0 is the plain sum": (NP, "test_mu_0_is_the_plain_sum"),
        "mu = 0 is linear byte for byte": (CALIBRATION, "test_linear_is_np_without_protection_byte_for_byte"),
        "mu = inf: dW_m V = w_s dW_s V": (NP, "test_hard_leaves_the_style_alone_in_its_directions"),
        "dW_m V = dW_s V + dW_c V / (1 + mu)": (NP, "test_soft_leaves_the_subject_one_part_in_one_plus_mu_there"),
        "||X V|| = ||dW_c V|| / (1 + mu), falling": (NP, "test_leakage_falls_as_mu_grows"),
        "||X||^2 = ||dW_c||^2 (1 - rho + rho / (1 + mu)^2)": (NP, "test_energy_identity"),
        "||X - dW_c|| = g sqrt(rho) ||dW_c||": (POSITIONS, "test_how_far_the_projection_moves_the_subject"),
        "E[rho] = k / n for unrelated row spaces": (POSITIONS, "test_unrelated_row_spaces_overlap_by_chance"),
        "orthogonal row spaces: the sum": (POSITIONS, "test_orthogonal_row_spaces_give_the_sum"),
        "equal row spaces: dW_c / (1 + mu)": (
            POSITIONS, "test_equal_row_spaces_give_the_subject_at_one_part_in_one_plus_mu",
        ),
        "identical inputs: dW (2 + mu) / (1 + mu)": (
            POSITIONS, "test_identical_inputs_give_two_plus_mu_over_one_plus_mu",
        ),
        "(B G^-1, G A) changes nothing": (NP, "test_other_factors_of_the_same_update_change_nothing"),
        "permuting ranks changes nothing": (NP, "test_permuting_ranks_changes_nothing"),
        "w_s > 0 does not change X": (NP, "test_the_strength_of_the_style_does_not_change_the_subject"),
        "w_s = 0 is no style": (NP, "test_a_style_of_strength_0_is_no_style_rather_than_a_projector"),
        "dead ranks protect nothing": (POSITIONS, "test_dead_ranks_protect_nothing"),
        "C_c = I, C_s = V V^T in the general operator": (
            VARIANTS, "test_a_projection_is_the_general_operator_with_its_own_c_s",
        ),
        "argmin ||X - D_c||^2 + mu tr(X C_s X^T)": (VARIANTS, "test_a_projection_is_the_least_of_its_objective"),
        "the transpose maps left to right": (NP, "test_transposing_all_inputs_maps_the_input_side_to_the_output_side"),
        "left, hard: U^T X = 0": (
            POSITIONS, "test_hard_on_the_output_side_the_subject_writes_nothing_that_the_style_writes",
        ),
        "the top priority is exact on its own inputs": (ORDER, "test_the_most_protected_is_whole_and_copied"),
        "hard: X_j V_i = 0 for all i above j": (ORDER, "test_hard_each_is_silent_on_the_inputs_of_all_above_it"),
        "orthogonal inputs of N: the plain sum": (ORDER, "test_orthogonal_row_spaces_are_added_whatever_the_order"),
        "permuting equals changes nothing": (ORDER, "test_equals_may_be_given_in_any_order"),
        "N = 2 is the pair": (ORDER, "test_two_adapters_are_the_pair"),
        "directions that fill the input are noted": (ORDER, "test_directions_that_fill_the_space_are_noted"),
        "symmetric and hard: the overlap is lost from both": (
            POSITIONS, "test_hard_and_symmetric_both_lose_what_they_share",
        ),
        "calibrated: ||g X|| = ||dW_c||": (CALIBRATION, "test_what_is_left_gets_its_norm_back_up_to_the_limit"),
        "calibrated, rho = 0: g = 1": (CALIBRATION, "test_where_nothing_is_taken_away_nothing_is_given_back"),
        "calibrated, rho = 1: direct merge": (CALIBRATION, "test_with_one_initialisation_it_is_plain_addition"),
    },
    "np-spectral": {
        "equal s_i: np": (VARIANTS, "test_np_spectral_of_equal_singular_values_is_np"),
        "s_r -> 0: rank r - 1": (VARIANTS, "test_np_spectral_without_its_last_direction_is_that_of_a_rank_less"),
        "scale-free in w_s": (VARIANTS, "test_np_spectral_does_not_see_the_style_s_strength_or_its_factors"),
        "the Gram form is the SVD form": (VARIANTS, "test_np_spectral_attenuates_by_the_style_s_spectrum"),
        "C_s = dW_s^T dW_s / s_1^2": (VARIANTS, "test_a_projection_is_the_general_operator_with_its_own_c_s"),
    },
    "np-adaptive": {
        "kappa = inf: direct; kappa = 0: hard": (
            VARIANTS, "test_np_adaptive_without_a_budget_is_the_sum_and_with_none_left_is_hard",
        ),
        "||X V|| <= kappa ||dW_s||": (VARIANTS, "test_np_adaptive_keeps_the_leakage_within_its_budget"),
        "||X||^2 >= eta ||dW_c||^2": (VARIANTS, "test_np_adaptive_keeps_the_content_floor"),
        "joint rescaling": (VARIANTS, "test_np_adaptive_scales_with_both_inputs"),
        "chance overlap is left alone": (VARIANTS, "test_chance_overlap_is_left_alone"),
        "where both cannot be had is reported": (
            "laws/test_merges.py", "test_np_adaptive_reports_its_mu_and_where_the_floor_overrules_the_budget",
        ),
        "hard, N: silent on all later ones": (
            VARIANTS, "test_hard_np_adaptive_of_three_keeps_each_from_all_later_ones",
        ),
    },
    "np-bilateral": {
        "hard: U_s^T dW_m V_s = diag(s)": (VARIANTS, "test_hard_np_bilateral_leaves_the_style_its_own_core"),
        "argmin ||X - D_c||^2 + mu ||U^T X V||^2": (VARIANTS, "test_np_bilateral_is_the_least_of_its_objective"),
        "the same transposed": (VARIANTS, "test_np_bilateral_does_not_know_inputs_from_outputs"),
    },
    "linear": {
        "the weighted sum, any number": (CALIBRATION, "test_linear_is_the_exact_sum"),
    },
    "svd": {
        "||D - D_k||^2 = sum of the dropped s_i^2": (OWN, "test_a_truncation_error_is_the_energy_of_what_was_dropped"),
        "PEFT's svd of the same rank": (PEFT, "test_svd_is_peft_s_svd_with_the_same_rank"),
        "linear in every space": (OWN, "test_linear_merging_is_the_sum_in_every_space"),
    },
    "ties": {
        "density 1 and equal signs: the mean": (OWN, "test_ties_of_equal_signs_at_density_1_is_the_mean"),
        "TIES(x, x) = x, trimmed": (OWN, "test_ties_of_an_update_with_itself_is_the_trimmed_update"),
        "TIES(x, -x) = |x|: a zero vote elects plus": (
            OWN, "test_ties_of_an_update_and_its_opposite_is_its_magnitude",
        ),
        "scales with strengths": (OWN, "test_ties_scales_with_the_strengths"),
        "PEFT's ties_svd at strength 1": (
            PEFT, "test_ties_on_updates_is_what_peft_calls_ties_svd_at_strength_1",
        ),
        "the residual is told": (BLOCKS, "test_a_streamed_result_is_nearly_the_best_and_its_error_is_told_exactly"),
    },
    "dare": {
        "density 1: the sum": (OWN, "test_linear_merging_is_the_sum_in_every_space"),
        "E over seeds is the sum": (BLOCKS, "test_the_mean_over_seeds_of_dare_is_the_sum"),
        "a seed fixes it, whatever stands beside": (LAWS, "test_a_module_does_not_depend_on_those_beside_it"),
    },
    "della": {
        "epsilon 0 is DARE": (OWN, "test_della_without_epsilon_is_dare"),
        "E over seeds is the sum": (OWN, "test_the_mean_over_seeds_of_della_is_the_sum"),
        "no probability of 0": (OWN, "test_della_refuses_a_probability_that_is_not_above_0"),
    },
    "breadcrumbs": {
        "no outliers: magnitude, not an empty mask": (OWN, "test_breadcrumbs_without_outliers_is_magnitude_pruning"),
    },
    "magnitude": {
        "its definition; density 1 is the sum": (DENSE, "test_a_merge_is_its_definition_on_dense_matrices"),
    },
    "knots": {
        "U S V_i^T = dW_i": (OWN, "test_the_aligned_updates_of_knots_multiply_back"),
        "linear: the sum": (OWN, "test_linear_merging_is_the_sum_in_every_space"),
        "trimmed as S V_i^T": (OWN, "test_knots_trims_what_adds_least_to_the_update"),
        "the thin form is the dense one": (DENSE, "test_a_merge_is_its_definition_on_dense_matrices"),
    },
    "core-space": {
        "U_B M_i V_A = dW_i": (OWN, "test_cores_lose_nothing"),
        "linear: the sum": (OWN, "test_linear_merging_is_the_sum_in_every_space"),
        "TSV and Iso as outside": (OWN, "test_tsv_and_iso_are_the_same_in_core_space"),
        "rank at most R, any ranks": (OWN, "test_core_space_takes_any_ranks_and_gives_at_most_their_sum"),
        "the inner merge of the cores": (DENSE, "test_core_space_is_the_merge_of_the_cores"),
    },
    "tsv": {
        "orthogonal updates: the sum": (OWN, "test_tsv_of_orthogonal_updates_is_their_sum"),
        "K equal: dW": (OWN, "test_tsv_of_equal_updates_is_one_of_them"),
        "any order": (OWN, "test_tsv_takes_the_updates_in_any_order"),
    },
    "iso-c": {
        "one level on the sum's directions": (OWN, "test_iso_c_has_one_singular_value_and_the_directions_of_the_sum"),
        "a flat spectrum comes back": (OWN, "test_iso_c_gives_a_flat_spectrum_back"),
    },
    "iso-cts": {
        "common 1: Iso-C": (OWN, "test_iso_cts_with_nothing_but_the_common_space_is_iso_c"),
        "any order": (OWN, "test_iso_cts_takes_the_updates_in_any_order"),
        "ranks are counted against R": (OWN, "test_iso_cts_of_two_adapters_of_rank_4_gives_each_a_direction_of_its_own"),
    },
    "do-merging": {
        "<v_i, v_j> = 0, norms kept": (OWN, "test_do_merging_makes_orthogonal_parts_of_the_same_norms"),
    },
    "pico": {
        "one adapter: itself": (OWN, "test_pico_of_one_adapter_is_the_adapter"),
        "flat spectrum: the sum": (OWN, "test_pico_of_updates_with_one_flat_spectrum_is_the_sum"),
        "any order": (OWN, "test_pico_damps_most_what_carries_most_and_takes_any_order"),
        "scales; merged has the mean norm": (OWN, "test_pico_scales_with_its_inputs"),
    },
    "lego": {
        "k = R: the sum": (OWN, "test_lego_with_a_cluster_for_each_unit_is_the_sum"),
        "k = R, partly equal: the sum": (
            OWN, "test_lego_with_a_cluster_for_each_unit_is_the_sum_of_partly_equal_updates_too",
        ),
        "K equal at k = r: K dW": (OWN, "test_lego_of_equal_updates_is_their_sum"),
        "(B G^-1, G A) changes nothing": (
            OWN, "test_lego_depends_on_updates_not_on_factors_and_has_the_rank_asked_for",
        ),
    },
    "peft-linear": {
        "PEFT's numbers": (PEFT, "test_peft_linear_is_peft_s_linear"),
        "two equal at 1/2: twice": (PEFT, "test_peft_linear_has_cross_terms"),
    },
    "peft-ties": {
        "PEFT's numbers": (PEFT, "test_peft_ties_is_peft_s_ties"),
        "two equal at 1/2: half; density 1 still drops": (
            PEFT, "test_peft_ties_of_equal_adapters_at_a_half_each_is_half_and_density_1_still_drops",
        ),
    },
    "kohya-add": {
        "its formulas": (PEFT, "test_kohya_s_merges_are_its_formulas"),
        "0.5 acts as 0.25": (PEFT, "test_kohya_s_strength_is_squared_and_its_concat_too_weak"),
    },
    "kohya-concat": {
        "its formulas": (PEFT, "test_kohya_s_merges_are_its_formulas"),
        "two at 0.5: four times too weak": (PEFT, "test_kohya_s_strength_is_squared_and_its_concat_too_weak"),
    },
    "K-LoRA's report": {
        "identical: gamma 1, a third": (KLORA, "test_identical_adapters_change_over_after_a_third"),
        "the style's strength cancels": (KLORA, "test_the_style_s_strength_changes_nothing"),
        "the switch is the rule": (KLORA, "test_until_the_switch_the_subject_wins_and_after_it_the_style"),
    },
    "block slice": {
        "key sets are disjoint": (PAGES, "test_a_block_slice_takes_one_block_of_each"),
        "with itself: the file in two blocks": (
            PAGES, "test_a_block_slice_of_a_file_with_itself_is_the_file_in_two_blocks",
        ),
    },
    "compression": {
        "Frobenius error sqrt(sum s_i^2), spectral s_{k+1}": (
            COMPRESSION, "test_it_is_the_nearest_update_of_its_rank_and_says_its_error",
        ),
        "dW_m V_s is untouched": (COMPRESSION, "test_what_is_kept_stays_as_it_is_and_the_rest_is_nearest"),
        "U sqrt(S), sqrt(S) V^T": (COMPRESSION, "test_factors_are_balanced"),
    },
    "all": {
        "any number of adapters, any ranks, convolutions": (EVERY, "test_any_number_of_adapters_of_any_ranks"),
        "nothing of the weight's size is kept": (EVERY, "test_nothing_of_the_weight_s_size_is_kept"),
        "factors do not matter, only their product": (DENSE, "test_factors_do_not_matter_but_their_product"),
        "a strength of 0 leaves an adapter out": (DENSE, "test_a_strength_of_zero_leaves_an_adapter_out"),
        "every kind in every format": (LAWS, "test_every_kind_in_every_format"),
    },
}  # fmt: skip


@cache
def named_in(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("what", IDENTITIES)
def test_every_identity_has_its_test(what: str) -> None:
    missing = {f"{file}::{name}" for file, name in IDENTITIES[what].values() if name not in named_in(file)}
    assert not missing


def test_every_method_is_on_the_list() -> None:
    assert known_methods().keys() <= IDENTITIES.keys()
