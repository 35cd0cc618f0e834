import torch  # start it with: torchrun --nproc-per-node 2 production.py
from diffusers import DiffusionPipeline

import ditplan

plan = ditplan.load("plan.json")
pipe = ditplan.parallelize(DiffusionPipeline.from_pretrained("model"), plan)
ditplan.warm_up(pipe, plan)
asked = {name: getattr(plan.workload, name) for name in ("height", "width")}
for seed, prompt in enumerate(("a red circle left of a blue square", "a green square")):
    noise = torch.Generator().manual_seed(seed)
    image = pipe(prompt, num_inference_steps=4, generator=noise, **asked).images[0]
    if torch.distributed.get_rank() == 0:
        image.save(f"{seed}.png")
pipe.close()
