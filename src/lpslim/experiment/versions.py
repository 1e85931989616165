"""What a result depends on besides its settings: the code of each stage, and the rule of counting.

Raise a stage's version when a change alters its results, and prune's with score's: older results
then keep their keys, and a table says which records are outdated.
"""

VERSIONS = {"baseline": 1, "sparsify": 1, "score": 1, "prune": 1, "finetune": 1}
RULE = "multiply-adds of convolution and linear layers; all parameters"
