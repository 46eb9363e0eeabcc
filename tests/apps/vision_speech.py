"""Models of ultralytics, diffusers and faster-whisper: `GET /case/NAME` runs one call."""

import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_AUTOINSTALL"] = "false"

import ctranslate2
import numpy as np
import torch
from cases import error_of, serve
from diffusers import DDIMScheduler, DDPMPipeline, DiffusionPipeline, UNet2DModel
from faster_whisper import BatchedInferencePipeline, WhisperModel
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from ultralytics import YOLO

torch.manual_seed(0)
torch.set_num_threads(1)
FOLDER = Path(tempfile.mkdtemp())

yolo = YOLO("yolov8n.yaml")
image = (np.arange(64 * 64 * 3) % 251).astype("uint8").reshape(64, 64, 3)
(FOLDER / "images").mkdir()
for name in "ab":
    Image.fromarray(image).save(FOLDER / "images" / f"{name}.png")
images = str(FOLDER / "images")
lock = threading.Lock()
of_yolo = {"imgsz": 64, "verbose": False, "device": "cpu"}


def counts(results: Any) -> list[int]:
    return [len(one) for one in results]


unet = UNet2DModel(
    sample_size=8,
    block_out_channels=(8, 8),
    norm_num_groups=4,
    down_block_types=("DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D"),
    layers_per_block=1,
)
paint = DDPMPipeline(unet, DDIMScheduler(num_train_timesteps=10))
paint.set_progress_bar_config(disable=True)


class Own(DiffusionPipeline):
    """A pipeline of the user's, that calls another one."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, texts: list[str]) -> Any:
        return [painted(steps=2)[0, 0, 0].tolist() for _ in texts]


own = Own(unet, paint.scheduler)


def painted(steps: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    return paint(generator=generator, num_inference_steps=steps, output_type="np").images


def whisper() -> str:
    """Return the folder of a tiny model with the words of OpenAI's, converted."""
    words = [f"w{number}" for number in range(60)]
    marks = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>"]
    marks += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    marks += [f"<|{number * 0.02:.2f}|>" for number in range(1501)]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words + marks)}, "w0"))
    made.add_special_tokens(marks)
    config = WhisperConfig(
        vocab_size=len(words + marks),
        **{f"{part}_{name}": 1 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")},
        **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 16),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 60),
        decoder_start_token_id=61,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.no_timestamps_token_id = 69
    model.generation_config.lang_to_id = {"<|en|>": 62, "<|de|>": 63}
    model.generation_config.alignment_heads = [[0, 0]]
    source, folder = FOLDER / "source", FOLDER / "tiny-whisper"
    model.save_pretrained(source)
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=marks[0]).save_pretrained(source)
    ctranslate2.converters.TransformersConverter(str(source), copy_files=["tokenizer.json"]).convert(str(folder))
    return str(folder)


def converted_writer() -> str:
    """Return the folder of a tiny model that writes, converted."""
    words = ["END", "UNK", "good", "bad", "day", "a"]
    made = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, "UNK"))
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    source, folder = FOLDER / "writer", FOLDER / "tiny-writer"
    GPT2LMHeadModel(GPT2Config(vocab_size=len(words), **sizes)).save_pretrained(source)
    special = {"eos_token": "END", "bos_token": "END", "unk_token": "UNK"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(source)
    ctranslate2.converters.TransformersConverter(str(source)).convert(str(folder))
    return str(folder)


speech = WhisperModel(whisper(), device="cpu", compute_type="float32", cpu_threads=1)
writer = ctranslate2.Generator(converted_writer(), device="cpu", intra_threads=1)
batched = BatchedInferencePipeline(speech)
sound = np.sin(np.arange(16_000 * 2) / 20).astype("float32")
of_speech = {"temperature": 0.0, "max_new_tokens": 4, "condition_on_previous_text": False}


def transcribed(model: Any, **options: Any) -> list[str]:
    segments, _ = model.transcribe(sound, **of_speech, **options)
    return [segment.text for segment in segments]


def given_up() -> str:
    segments, info = speech.transcribe(sound, language="en", **of_speech)
    next(segments, None)
    return str(info.language)


def alone(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return a call of a model that threads may not share."""

    def locked() -> Any:
        with lock:
            return call()

    return locked


VISION: dict[str, Callable[[], Any]] = {
    "predict": lambda: counts(yolo.predict(image, **of_yolo)),
    "predict-batch": lambda: counts(yolo([image, image], **of_yolo)),
    "predict-files": lambda: counts(yolo.predict(images, **of_yolo)),
    "predict-stream": lambda: counts(yolo.predict(images, stream=True, **of_yolo)),
    "predict-abandoned": lambda: len(next(yolo.predict(images, stream=True, **of_yolo))),
    "predict-raises": lambda: error_of(lambda: yolo.predict("/nowhere.png", **of_yolo))[0],
    "paint": lambda: painted(3)[0, 0, 0],
    "paint-own": lambda: own(["a", "b"]),
    "paint-raises": lambda: error_of(lambda: painted(11))[0],
}
CASES: dict[str, Callable[[], Any]] = {
    **{name: alone(call) for name, call in VISION.items()},
    "transcribe": lambda: transcribed(speech, language="en"),
    "transcribe-language": lambda: transcribed(speech),
    "transcribe-batched": lambda: transcribed(batched, language="en", clip_timestamps=[{"start": 0, "end": 2}]),
    "transcribe-speech": lambda: transcribed(batched, language="en"),
    "transcribe-abandoned": given_up,
    "not-iterated": lambda: speech.transcribe(sound, language="en", **of_speech)[1].language,
    "encode": lambda: speech.encode(np.zeros((80, 3_000), "float32")).shape,
    "write": lambda: writer.generate_batch([["good"], ["a"]], max_length=3)[0].sequences,
    "write-tokens": lambda: [one.token for one in writer.generate_tokens(["good"], max_length=2)],
    "write-raises": lambda: error_of(lambda: writer.generate_batch([["good"]], max_length=-1))[0],
}

app = serve({name: torch.no_grad()(call) for name, call in CASES.items()})
