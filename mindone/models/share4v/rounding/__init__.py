"""How float weights become integers: rotation, the importance of inputs, and GPTQ. Nothing here imports MindSpore."""
