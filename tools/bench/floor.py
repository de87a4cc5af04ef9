"""The arithmetic alone, by the same routines: matrix products in their actual shapes, and one pass of each function.

What is left out: automatic differentiation, the optimizer, sums, and everything that is not counted in the comments.
"""

import torch
from problem import COMPONENTS, HIDDEN, LATENT, PIXELS, Problem, Row, Task

VERSION = torch.__version__.split("+")[0]
ENCODER = [(PIXELS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2 * LATENT)]
DECODER = [(LATENT, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, PIXELS)]


def task(problem: Problem, row: Row) -> Task:
    """Return the arithmetic of the row."""
    if row.kind.startswith("mixture"):
        products = [(row.batch, PIXELS, COMPONENTS)]  # and the transposed one for the gradient
        if row.learns:
            products += [(COMPONENTS, row.batch, PIXELS)]
        return arithmetic(products, {torch.exp: (row.batch, COMPONENTS)}, 1)
    # log p works in chunks of 1,000 z; one is measured as often as it takes
    count = row.batch * row.samples // 1000 if row.kind == "log p" else 1
    many = 1000 if row.kind == "log p" else row.batch * row.samples
    products = [(row.batch, *sizes) for sizes in ENCODER] if row.learns else []
    products += [(many, *sizes) for sizes in DECODER]
    if row.learns:
        for number, (rows, inputs, outputs) in enumerate(list(products)):
            products.append((inputs, rows, outputs))  # gradient of the weights
            if number:  # and of the layer's input, except for the images
                products.append((rows, outputs, inputs))
    hidden = 2 * HIDDEN * (many + row.batch * row.learns)
    functions = {torch.tanh: (hidden,), torch.nn.functional.softplus: (many, PIXELS), torch.randn: (many, LATENT)}
    return arithmetic(products, functions, count)


def arithmetic(products: list, functions: dict, repeats: int) -> Task:
    """Return a task of matrix products (m, k) @ (k, n) and functions of so many numbers."""
    pairs = [(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)) for m, k, n in products]
    inputs = [(function, shape, torch.randn(shape)) for function, shape in functions.items()]

    def run(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count * repeats):
                for a, b, out in pairs:
                    torch.mm(a, b, out=out)
                for function, shape, x in inputs:
                    function(*shape) if function is torch.randn else function(x)

    return Task(run, lambda: float("nan"), "matrix products, tanh, softplus and normals, once each")
