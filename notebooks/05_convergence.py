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
# Does LoRA reach the loss of full fine-tuning? And if it does not, why not?
#
# **You will learn** to
#
# - compare LoRA with full fine-tuning fairly, each at its own best learning rate;
# - explain what the rank and the choice of layers change in the final loss;
# - separate two causes of the remaining difference: the low rank, and the parameters that LoRA leaves frozen.
#
# **Before you start:** notebook 02.
#
# *Reading: 30 minutes. Running: about 30 seconds.*
#
# tiny was trained on English prose. Here it learns Python code. Full fine-tuning trains all parameters. LoRA trains few of them, with ranks from 1 to 64, on the attention layers only or on all linear layers. The loss is measured on code that no run trains on.
#
# All other settings are equal: 200 steps on batches of 8 × 128 bytes, AdamW, a learning rate that increases over ten steps and then falls to zero along a cosine, and $\alpha = 8r$.

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
# The *gain* of a method is the reduction of the held-out loss, from the base to the end of training. The picture shows the gain of LoRA as a share of the gain of full fine-tuning:
#
# $$\frac{L_\text{base} - L_\text{LoRA}}{L_\text{base} - L_\text{full}}$$
#
# With 0 % LoRA has learned nothing. With 100 % it is as good as full fine-tuning.

# %%
ranks = table.settings["ranks"]
names = [f"convergence.recovered.all-linear.r{r}.steps200" for r in (8, 64)]
display(Markdown(findings.say(*names, "convergence.recovered.attention.r8.steps200")))

# %% [markdown]
# A higher rank recovers more. All linear layers recover much more than the attention layers only. Note that $r = 64$ saves little here: tiny has a hidden size of only 128, so an adapter of rank 64 has three quarters as many parameters as tiny.
#
# The dotted line is the same study with 50 steps in place of 200, at three ranks. The shares hardly depend on the number of steps.
#
# ## The path to the end
#
# **Predict.** At the start $B = 0$, so $A$ has no gradient in the first step. Is LoRA slower than full fine-tuning at the start?

# %%
plots.loss_curves(table);

# %% [markdown]
# Lower ranks are slower from the start and stay slower. With $r = 64$ on all linear layers, LoRA is almost as fast as full fine-tuning. So $B = 0$ is not the reason: it delays $A$ by one step, at all ranks (notebook 03). The rank is the reason.
#
# The flat ends do not mean that nothing more can be learned. The curves become flat because the learning rate falls to zero.
#
# A step of LoRA does not take the same time as a step of full fine-tuning. The next picture shows the loss over seconds. The seconds are the number of steps, times the time of one step. The steps of all methods were timed in turns, so other work on the machine slows all of them equally.

# %%
cost = Table.load("../figures/data/step_cost.json")
plots.loss_curves(timed_alike(table, cost), x="seconds");

# %% [markdown]
# ## Each method needs its own learning rate
#
# **Predict.** LoRA's best learning rate differs from that of full fine-tuning. By what factor? Does it depend on the rank?

# %%
plots.learning_rates(table);

# %% [markdown]
# At a single learning rate for all methods, the choice of this rate would decide the comparison. The study therefore runs each method at several rates with one seed. The best rate is chosen on a second held-out text. Then three seeds run at the best rate.
#
# The best rates, and how many times the rate of full fine-tuning they are:

# %%
best = {}
for row in table.where(phase="seeds", seed=0):
    best[row["method"], row["target_modules"], row["r"]] = row["lr"]
full_lr = best["full", None, None]
lines = []
for (method, layers, r), lr in best.items():
    line = {"method": NAMES[method], "layers": LAYERS[layers], "r": r}
    lines.append(line | {"rate": lr, "times full's": lr / full_lr})
show(lines, {"method": "", "layers": "", "r": "", "rate": "g", "times full's": "g"})

# %% [markdown]
# The factor depends on the scaling $s = \alpha / r$, because the output of the bypass changes by $s$ times the change of $B$. A larger $s$ needs a smaller learning rate. Here $\alpha = 8r$, so $s = 8$ at all ranks. An entry of $s\,BA$ is a sum of $r$ products. The more products, the larger its
# change in a step, and the smaller the best learning rate. [Schulman et al. (2025)](https://thinkingmachines.ai/blog/lora/) fix $\alpha$ in place of $s$. They find that LoRA's best rate is about ten times that of full fine-tuning, at all ranks.
#
# These factors are rough. The rates differ by a factor of two, only one seed chose them, and the loss is nearly equal at neighbouring rates (see attention at $r = 2$ in the picture).
#
# ## Do it yourself
#
# The next cell runs full fine-tuning and LoRA with $r = 8$, with the settings of the study but only sixty steps.
#
# **Predict.** The study has a loss after 60 of its 200 steps. Is the loss at the end of a run with sixty steps above it, below it, or about equal?

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
# A run with sixty steps ends near the loss of the long run after 60 steps, and clearly above the end of the long run. (LoRA ends a little lower, because in the short run its learning rate has already fallen.) A flat curve shows that the schedule of the learning rate is over. It does not show that the model has converged.
#
# ## Why does LoRA not reach full fine-tuning?
#
# There are two possible causes: the low rank, and the parameters that LoRA leaves frozen. These are the embedding (which is also the output head) and the norms. Two more methods separate the causes:
#
# - *linear layers only:* full fine-tuning, but only of the linear layers. It has no low rank, but the same frozen parameters.
# - *LoRA + rest:* LoRA, and the embedding and the norms are trained too. It has a low rank, but no frozen parameters except $W$.
#
# **Predict.** Which of the two comes closer to full fine-tuning?

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
# Both causes contribute. To see how much, compare the rows of the table:

# %% jupyter={"source_hidden": true}
# Prints the points of the gain that each cause costs.
share = {line["method"]: 100 * line["gain"] for line in lines}
full, linear, rest, lora = (share[name] for name in methods.values())
display(
    Markdown(
        f"- *Frozen embedding and norms* cost {full - linear:.1f} points without a low rank "
        "(full fine-tuning against linear layers only), "
        f"and {rest - lora:.1f} points with one (LoRA + rest against LoRA).\n"
        f"- *The low rank* costs {full - rest:.1f} points if everything else is trained "
        f"(full fine-tuning against LoRA + rest), and {linear - lora:.1f} points if it is not "
        "(linear layers only against LoRA)."
    )
)

# %% [markdown]
# The low rank costs a little more in the mean of the three seeds. The differences between seeds are about as large, so the order is not certain.
#
# ## The cost of a step
#
# LoRA does not compute $dW$ and stores no optimizer state for the frozen weights. It computes the products with $A$ and $B$ in addition.
#
# **Predict.** At $r = 8$, LoRA's products in tiny's linear layers take three quarters of the operations of full fine-tuning. Does its step take three quarters of the time?

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
# It does not. On a model with a hidden size of 128, the products are only about half of the time. The softmax, the norms and the activations take the same time with both methods, and the narrow products with $A$ and $B$ are less efficient than wide ones. Small differences between the ranks are noise.
# On a larger model it is different (notebook 10):

# %%
display(Markdown(findings.say("finetuning.cost.step_seconds")))

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
# - LoRA on all linear layers comes close to full fine-tuning. Here it does not reach it; a higher rank comes closer.
# - The same rank on the attention layers only recovers much less.
# - The remaining difference has two causes, the low rank and the frozen embedding and norms.
# - Each method needs its own learning rate. A comparison at one rate for all compares the choice of the rate.
#
# ## Three questions
#
# 1. LoRA recovers 100 % of the gain. Does its loss equal that of full fine-tuning?
#
# <details><summary>Answer</summary>
#
# Yes. The share is 100 % exactly if $L_\text{LoRA} = L_\text{full}$. It could also be more than 100 %, if LoRA ended lower.
#
# </details>
#
# 2. Why is the best learning rate chosen on another held-out text than the text of the comparison?
#
# <details><summary>Answer</summary>
#
# The best of several rates is the one that fits this text best, partly by chance. On the same text the result of the comparison would be too good, most for the method with the most rates.
#
# </details>
#
# 3. A curve of the loss is flat at its end. What can you conclude?
#
# <details><summary>Answer</summary>
#
# Little. The learning rate falls to zero at the end, so each curve becomes flat. A longer run ends lower.
#
# </details>
#
# ## Try
#
# 1. Attention-only LoRA with $r = 64$ trains 286,720 parameters. From which rank on does LoRA on *all linear layers* recover as much, and with how many parameters? What does this say about where to put parameters?
#
# <details><summary>Hint</summary>
#
# Compare the two rows of the table under "All numbers". LoRA on all linear layers of tiny has 12,160 parameters per rank.
#
# </details>
#
# <details><summary>Answer</summary>
#
# From $r = 4$ on, with 48,640 parameters: a sixth as many. The same number of parameters recovers more if it is spread over all linear layers with a low rank.
#
# </details>
#
# 2. Set `steps` to 20 and to 400 in your own run. Does the order of the methods change?
#
# <details><summary>Hint</summary>
#
# With 20 steps, half of the run is the warm-up. Set `eval_every` so that it divides the number of steps. The column "60 of 200" stays as it is.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It does not change: full fine-tuning ends lower with 20, 60 and 400 steps. With 400 steps both methods end clearly lower than with 200. The rates were chosen for 200 steps, so this is not a fair comparison for the other lengths.
#
# </details>
#
# 3. How much of its English has tiny forgotten? Measure the loss on prose of the base, of full fine-tuning and of LoRA:
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
# Both forget: the loss on prose rises by about 0.1 nats per byte, with LoRA slightly more than with full fine-tuning. A low rank alone does not prevent forgetting. Notebook 09 compares all methods in this respect.
#
# </details>
#
# Continue with [Hyperparameters](06_hyperparameters.ipynb).
