"""An application of Gradio's, as its documentation shows it."""

import os

import gradio as gr


def double(value: float) -> float:
    return value * 2


demo = gr.Interface(double, gr.Number(), gr.Number(), api_name="double")
demo.launch(server_name="127.0.0.1", server_port=int(os.environ["PORT"]))
print("went on", flush=True)  # noqa: T201
