"""Names of what training logs (``opd.losses.metrics``, and the trainers' own), without torch."""

DISTILL = """
    loss grad_norm overlap_ratio overlap_token_advantage overlap_token_advantage_code
    entropy_gap_nats entropy_student_nats entropy_teacher_nats entropy_gap_of_means_nats
    overlap_mass_student overlap_mass_teacher overlap_mass_student_code overlap_mass_teacher_code
    top_mass_student top_mass_teacher extreme_advantage_gap max_advantage_student_code
    max_advantage_teacher_code min_advantage_student_code min_advantage_teacher_code
    teacher_rank teacher_rank_in_top log_ratio_repeated_nats log_ratio_other_nats kl_nats
    response_tokens truncation_ratio repetition_ratio"""
# Of states in responses that the student has not sampled.
OFFLINE = [
    f"offline_{name}"
    for name in DISTILL.split()[2:]
    if name not in ("response_tokens", "truncation_ratio", "repetition_ratio")
]
GRPO = """
    reward reward_std correct brevity groups_without_variance response_tokens_max clip_ratio
    clip_ratio_low clip_ratio_high importance_weight importance_weight_max
    sampler_difference_nats"""
METRICS = (*DISTILL.split(), *OFFLINE, *GRPO.split(), "nll_nats", "perplexity")
