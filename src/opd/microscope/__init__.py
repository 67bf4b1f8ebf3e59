"""A training-free microscope: at each token of a student's rollout, does the teacher's gradient
point towards a correct answer? (Unmasking On-Policy Distillation, arXiv 2605.10889: below "the
paper".)"""
