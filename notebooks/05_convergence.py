# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Convergence: LoRA and full fine-tuning
#
# Does LoRA reach the loss of full fine-tuning? If LoRA ends with a higher loss than full fine-tuning, what is the reason?
#
# **You will learn** to
#
# - compare LoRA with full fine-tuning fairly, with the best learning rate for each method;
# - explain how the final loss depends on the rank and on the choice of layers;
# - separate two causes of the higher loss of LoRA: the low rank, and the parameters that LoRA leaves frozen.
#
# **Before you start:** notebook 02.
#
# *Reading: 45 minutes. Tasks: 25 minutes. Running: about 30 seconds.*
#
# The model "tiny" was trained on English prose. In this study the model "tiny" learns Python code. Full fine-tuning trains all parameters of the model. LoRA trains an adapter on the linear layers of attention only, or on all linear layers. The rank of the adapter is between 1 and 64. The loss is measured on held-out code, which is not used for training.
#
# All other settings are equal: each run has 200 steps of AdamW on batches of 8 × 128 bytes, and LoRA uses $\alpha = 8r$. The learning rate increases over the first ten steps (the warm-up) and then falls to zero along a cosine.

# %%
import statistics

from IPython.display import Markdown, display

import lora_np as ln
from lora_np import plots
from lora_np.report.results import Findings
from lora_np.studies.harness.table import Table, show
from lora_np.studies.harness.tiny_task import Run, measure
from lora_np.studies.timing.step_cost import timed_alike

NAMES = {"full": "full fine-tuning", "lora": "LoRA"}
LAYERS = {"all-linear": "all linear layers", "attention": "attention only", None: ""}
findings = Findings("../figures/")
table = Table.load("../figures/data/convergence.json")
short = Table.load("../figures/data/convergence_short.json")
plots.recovered_gain(table, short);

# %% [markdown]
# ## The result: the share of the gain
#
# The *gain* of a method is the held-out loss of the base minus the held-out loss after training. The picture shows the gain of LoRA as a share of the gain of full fine-tuning:
#
# $$\frac{L_\text{base} - L_\text{LoRA}}{L_\text{base} - L_\text{full}}$$
#
# A share of 0 % means that LoRA has learned nothing. A share of 100 % means that LoRA is as good as full fine-tuning. We say that LoRA *recovers* this share of the gain.

# %%
ranks = table.settings["ranks"]
names = [f"convergence.recovered.all-linear.r{r}.steps200" for r in (8, 64)]
display(Markdown(findings.say(*names, "convergence.recovered.attention.r8.steps200")))

# %% [markdown]
# LoRA with a higher rank recovers a larger share of the gain. LoRA on all linear layers recovers much more of the gain than LoRA on the attention layers only. But the adapter with $r = 64$ on all linear layers is large for the model "tiny". The hidden size of this model is only 128, so the number of parameters of the adapter is three quarters of the number of parameters of the model.
#
# The dotted line in the picture shows the recovered shares of the gain after runs of 50 steps, at three ranks. The dotted line is close to the line that shows the runs of 200 steps. So with four times as many steps, the recovered shares change by only a few percentage points.
#
# ## The loss during training
#
# **Predict.** LoRA starts with $B = 0$, so the gradient of $A$ is zero in the first step. Does the loss of LoRA fall more slowly than the loss of full fine-tuning in the first steps?

# %%
plots.loss_curves(table);

# %% [markdown]
# In both panels, the loss of full fine-tuning falls fastest. The loss of LoRA with $r = 64$ on all linear layers falls almost as fast as the loss of full fine-tuning. At all ranks, LoRA starts with $B = 0$, which delays the training of $A$ by only one step (notebook 03). So the start with $B = 0$ does not explain why the loss falls more slowly at low ranks than at $r = 64$.
#
# At the end of the runs, the order of the curves is clear: the lower the rank, the higher the loss. During the first half of the runs, the order of the curves is sometimes different. For example, in both panels the curve of $r = 2$ is above the curve of $r = 1$ for many steps. Also, most ranks use different learning rates, because each rank uses its own best rate (see the section "Each method needs its own learning rate"). So the picture does not separate the effect of the rank from the effect of the learning rate.
#
# At the end of the runs, the curves become flat. But the model could still learn more. The curves become flat because the learning rate falls to zero.
#
# A step of LoRA does not take the same time as a step of full fine-tuning. The next picture shows the loss over the training time in seconds. This time is the number of steps, multiplied by the time of one step. The timing measured a few steps of each method, one method after another. This sequence was repeated several times. So other work on the machine slowed all methods equally.

# %%
cost = Table.load("../figures/data/step_cost.json")
plots.loss_curves(timed_alike(table, cost), x="seconds");

# %% [markdown]
# For the model "tiny", full fine-tuning has the lowest loss at each time. LoRA on the attention layers finishes its steps a little earlier than full fine-tuning, but with a higher final loss. So for the model "tiny", LoRA does not reach a given loss earlier than full fine-tuning. The section "The cost of a step" shows the time of a step for the model "tiny" and for a larger model.
#
# ## Each method needs its own learning rate
#
# **Predict.** The best learning rate of LoRA differs from the best learning rate of full fine-tuning. By which factor do the two rates differ? Does this factor depend on the rank?

# %%
plots.learning_rates(table);

# %% [markdown]
# If all methods used one learning rate, the choice of this rate would decide which method looks best. So the study first runs each method with several learning rates and one seed. The best rate is the rate with the lowest *validation loss*, which is the loss on a second held-out text. Then the study runs each method at its best rate with three seeds. (A seed fixes the random choices of a run.)
#
# The next table shows the best rate of each method, and this rate divided by the best rate of full fine-tuning:

# %%
best = {}
for row in table.where(phase="seeds", seed=0):
    best[row["method"], row["target_modules"], row["r"]] = row["lr"]
full_lr = best["full", None, None]
lines = []
for (method, layers, r), lr in best.items():
    line = {"method": NAMES[method], "layers": LAYERS[layers], "r": r}
    lines.append(line | {"rate": lr, "rate / full's rate": lr / full_lr})
show(lines, {"method": "", "layers": "", "r": "", "rate": "g", "rate / full's rate": "g"})

# %% [markdown]
# The factor in the last column depends on the scaling $s = \alpha / r$. Each change of $B$ is multiplied by $s$ in the output of the bypass, so a larger $s$ needs a smaller learning rate. Here $\alpha = 8r$, so $s = 8$ at all ranks. Each entry of $s\,BA$ is a sum of $r$ products, multiplied by $s$. With a higher rank the sum has more products, so the entry
# changes more in a step, and the best learning rate is smaller. [Schulman et al. (2025)](https://thinkingmachines.ai/blog/lora/) use the same $\alpha$ at all ranks, so their $s$ falls as the rank grows. Schulman et al. find that, at all ranks, the best learning rate of LoRA is about ten times the best learning rate of full fine-tuning.
#
# The factors in the table are rough estimates. Each rate that the study tries is twice the next lower rate, and only one seed is used to choose the best rate. Also, the loss is nearly equal at neighbouring rates (see LoRA on attention with $r = 2$ in the picture).
#
# ## Do it yourself
#
# The next cell runs full fine-tuning and LoRA with $r = 8$, with the settings of the study but only sixty steps.
#
# **Predict.** The study measured the loss after 60 of its 200 steps. Your run ends after sixty steps. Is its final loss higher than this loss of the study, lower, or about equal?

# %%
steps, rows, lines = 60, [], []
lora_lr = best["lora", "all-linear", 8]
for method in (Run("full", full_lr), Run("lora", lora_lr, r=8, target_modules="all-linear")):
    run = Run(**vars(method) | {"max_steps": steps, "eval_every": steps // 4})
    rows.append(measure(run))
    same = {"method": run.method, "r": run.r, "target_modules": run.target_modules}
    (study,) = table.where(phase="seeds", seed=0, **same)
    at_60 = study["heldout"][study["steps"].index(60)]
    line = {"method": NAMES[run.method], "parameters": ln.costs.count(run.model()).trainable}
    line |= {"60 steps": rows[-1]["heldout"][-1], "60 of 200": at_60}
    lines.append(line | {"200 of 200": study["final"]})
columns = {"method": "", "parameters": ",", "60 steps": ".3f", "60 of 200": ".3f"}
show(lines, columns | {"200 of 200": ".3f"})

# %%
base_loss = {"base_loss": rows[0]["heldout"][0]}
mine = Table("mine", "A short run of each method", "this notebook", base_loss, rows)
plots.loss_curves(mine);

# %% [markdown]
# Compare the final loss of the short run (sixty steps) with the loss of the long run (200 steps) after its first 60 steps. With full fine-tuning the two losses are almost equal. With LoRA the loss of the short run is a little lower than the loss of the long run after 60 steps. After 200 steps, the loss of the long run is clearly lower than the final loss of the short run. So the short runs could still learn, although their curves become flat at the end. A flat curve shows that the learning rate has fallen to zero. A flat curve does not show that the model has converged.
#
# ## Why does LoRA not reach full fine-tuning?
#
# There are two possible causes: the low rank, and the parameters that LoRA leaves frozen. LoRA leaves the embedding (which is also the output head) and the norms frozen. Two more methods separate the two causes:
#
# - *linear layers only:* this method trains the full weights of all linear layers. The changes of these weights may have any rank, but the embedding and the norms are frozen as in LoRA.
# - *LoRA + rest:* this method trains LoRA on all linear layers, and also the embedding and the norms. The change of the linear layers has a low rank, and only the weight matrices $W$ of these layers are frozen.
#
# **Predict.** Which of these two methods comes closer to the gain of full fine-tuning?

# %%
shortfall = Table.load("../figures/data/shortfall.json")
methods = {
    "full": "full fine-tuning",
    "linear": "linear layers only",
    "lora+rest": "LoRA + rest",
    "lora": "LoRA",
}
lines = []
for method, name in methods.items():
    runs = shortfall.where(method=method)
    shares = [row["recovered"] for row in runs]
    line = {"method": name, "r": runs[0]["r"], "best rate": runs[0]["lr"]}
    line |= {"gain": statistics.mean(shares), "lowest": min(shares), "highest": max(shares)}
    lines.append(line)
columns = {"method": "", "r": "", "best rate": "g"}
show(lines, columns | dict.fromkeys(("gain", "lowest", "highest"), ".1%"))

# %%
parts = ("lora", "lora+rest", "linear")
display(Markdown(findings.say(*(f"convergence.shortfall.{part}" for part in parts))))

# %% [markdown]
# Both the low rank and the frozen parameters contribute to the difference between LoRA and full fine-tuning. To see how much each cause contributes, compare the rows of the table:

# %% jupyter={"source_hidden": true}
# Prints the points of the gain that each cause costs.
share = {line["method"]: 100 * line["gain"] for line in lines}
full, linear, rest, lora = (share[name] for name in methods.values())
display(
    Markdown(
        f"- *Frozen embedding and norms* cost {full - linear:.1f} points without a low rank "
        "(full fine-tuning against linear layers only), "
        f"and {rest - lora:.1f} points with a low rank (LoRA + rest against LoRA).\n"
        f"- *The low rank* costs {full - rest:.1f} points if everything else is trained "
        f"(full fine-tuning against LoRA + rest), and {linear - lora:.1f} points if it is not "
        "(linear layers only against LoRA)."
    )
)

# %% [markdown]
# In the mean of the three seeds, the low rank costs a little more than the frozen embedding and norms. But the differences between seeds are about as large as the difference between these two costs. So the study does not show which cause costs more.
#
# ## The cost of a step
#
# LoRA does not compute $dW$ and stores no optimizer state for the frozen weights. But LoRA also computes the products with $A$ and $B$.
#
# **Predict.** Count the operations of the matrix products in the linear layers of the model "tiny". LoRA with $r = 8$ needs only three quarters of the operations of full fine-tuning. Does a step of LoRA take three quarters of the time of a step of full fine-tuning?

# %%
lines = [
    {
        "method": f"LoRA r = {row['r']}" if row["r"] else "full fine-tuning",
        "layers": LAYERS[row["target_modules"]],
        "parameters": row["trainable"],
        "seconds per step": row["seconds"],
        "peak, MB": row["peak_bytes"] / 1e6,
    }
    for row in cost.rows
]
columns = {"method": "", "layers": "", "parameters": ",", "seconds per step": ".3f"}
show(lines, columns | {"peak, MB": ".0f"})

# %% [markdown]
# For the model "tiny", a step of LoRA on all linear layers takes about as much time as a step of full fine-tuning. With $r = 64$, a step of LoRA takes more time than a step of full fine-tuning. The matrix products need only a part of the time of a step. Softmax, norms and SwiGLU take the same time with both methods. Also, the narrow products with $A$ and $B$ are less efficient than wide products. At all low ranks, LoRA needs nearly the same number of operations. So the differences between the times of the low ranks are mostly noise.
#
# With SmolLM2-135M LoRA saves time. The next cell shows the measured time of a step (notebook 10), and then the number of operations in all matrix products of a step:

# %%
config = ln.LoraConfig(r=8, target_modules="all-linear")
full, lora = (
    ln.costs.flops("smollm2-135m", method, batch=8, seq=128).total for method in (None, config)
)
display(Markdown(findings.say("finetuning.cost.step_seconds")))
print(f"operations in matrix products: LoRA / full fine-tuning = {lora / full:.2f}")

# %% [markdown]
# Compared with full fine-tuning of SmolLM2-135M, LoRA saves time and operations. The saved share of the time is larger than the saved share of the operations. A possible reason is that a step also does other work than matrix products. For example, the optimizer AdamW reads and changes each trained parameter and its two moments, $m$ and $v$. Full fine-tuning trains all parameters of the model, and LoRA trains only the parameters of the adapter.
# The study measured only the time of whole steps. So we do not know how much of the difference comes from the optimizer, and how much from other work.

# %% [markdown]
# ## All numbers

# %% jupyter={"source_hidden": true}
# Prints the share of the gain: mean of the seeds, and half of their range.
lines = []
for layers in table.settings["targets"]:
    line = {"layers": LAYERS[layers]}
    for r in ranks:
        runs = table.where(phase="seeds", method="lora", r=r, target_modules=layers)
        values = [100 * row["recovered"] for row in runs]
        half = (max(values) - min(values)) / 2
        line[f"r = {r}"] = f"{statistics.mean(values):.1f} ± {half:.1f}"
    lines.append(line)
show(lines, list(lines[0]))
print(f"share of full fine-tuning's gain in %; {len(table.settings['seeds'])} seeds")

# %% [markdown]
# ## Recap
#
# - LoRA on all linear layers comes close to the loss of full fine-tuning, and comes closer with a higher rank. But in this study, LoRA does not reach the loss of full fine-tuning.
# - At the same rank, LoRA on only the attention layers recovers much less of the gain than LoRA on all linear layers.
# - The remaining difference between LoRA and full fine-tuning has two causes: the low rank, and the frozen embedding and norms.
# - Each method needs its own learning rate. If all methods use one learning rate, the result depends on the choice of this rate.
#
# ## Three questions
#
# 1. Suppose that LoRA recovers 100 % of the gain. Does LoRA then have the same loss as full fine-tuning?
#
# <details><summary>Answer</summary>
#
# Yes. The share is 100 % exactly if $L_\text{LoRA} = L_\text{full}$. The share is more than 100 % if LoRA's final loss is lower than the final loss of full fine-tuning.
#
# </details>
#
# 2. The study uses one held-out text to choose the best learning rate, and another held-out text to compare the methods. Why?
#
# <details><summary>Answer</summary>
#
# The best of several rates has the lowest loss on the first text, partly by chance. If the study also compared the methods on the first text, the losses would look too low. This error is largest for the method that was tried with the most rates.
#
# </details>
#
# 3. The loss curve of a run is flat at its end. What can you conclude about the model?
#
# <details><summary>Answer</summary>
#
# You can conclude little. The learning rate falls to zero at the end of the run, so every curve becomes flat. A longer run can still reach a lower loss.
#
# </details>
#
# ## Try
#
# 1. Attention-only LoRA with $r = 64$ trains 286,720 parameters. From which rank on does LoRA on *all linear layers* recover at least the same share of the gain? How many parameters does LoRA on all linear layers train at this rank? Is it better to use many parameters in few layers, or few parameters in each of many layers?
#
# <details><summary>Hint</summary>
#
# Compare the two rows of the table under "All numbers". On all linear layers of the model "tiny", LoRA has $12{,}160 \cdot r$ parameters.
#
# </details>
#
# <details><summary>Answer</summary>
#
# From $r = 4$ on, LoRA on all linear layers recovers at least the same share of the gain as attention-only LoRA with $r = 64$. With $r = 4$, LoRA on all linear layers trains 48,640 parameters, which is about a sixth of 286,720. Therefore, it is better to spread few parameters over many layers than to put many parameters into few layers.
#
# </details>
#
# 2. Set `steps` to 20 and then to 400 in the cell under "Do it yourself", and run the cell. Is the final loss of full fine-tuning still lower than the final loss of LoRA?
#
# <details><summary>Hint</summary>
#
# The first ten steps are the warm-up, so with 20 steps the warm-up takes half of the training. Set `eval_every` to a divisor of the number of steps. The column "60 of 200" does not change.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Yes: with 20, 60 and 400 steps, full fine-tuning has the lower final loss. With 400 steps the final loss of both methods is clearly lower than with 200 steps. The learning rates were chosen for 200 steps, so the comparison is fair only with 200 steps.
#
# </details>
#
# 3. How much English does the model "tiny" forget when it learns code? Measure the loss on English prose for the base, for full fine-tuning and for LoRA:
#
#    ```python
#    from lora_np.studies.harness.tiny_task import fine_tune
#    from lora_np.studies.methods.comparison import prose_batches
#    from lora_np.training import evaluate
#
#    print(evaluate(ln.load_model("tiny"), prose_batches()))
#    model, _ = fine_tune(Run("lora", lora_lr, r=8, target_modules="all-linear", max_steps=60))
#    print(evaluate(model, prose_batches()))
#    ```
#
# <details><summary>Hint</summary>
#
# For full fine-tuning use `Run("full", full_lr, max_steps=60)`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With both methods, the model "tiny" forgets English. The loss on prose rises by about 0.1 nats per byte. With LoRA, the loss on prose rises slightly more than with full fine-tuning. So a low rank alone does not prevent forgetting. Notebook 09 compares how much English the model "tiny" forgets with each method.
#
# </details>
#
# Continue with [Hyperparameters](06_hyperparameters.ipynb).
