from .config import FrozenConfig as FrozenConfig
from .config import register_to_config as register_to_config
from .image_processor import CLIPImageProcessor as CLIPImageProcessor
from .models.autoencoder_kl import AutoencoderKL as AutoencoderKL
from .models.base import Model as Model
from .models.clip_text import CLIPTextModel as CLIPTextModel
from .models.clip_text import CLIPTextModelWithProjection as CLIPTextModelWithProjection
from .models.safety_checker import CLIPVisionModel as CLIPVisionModel
from .models.safety_checker import CLIPVisionModelWithProjection as CLIPVisionModelWithProjection
from .models.safety_checker import StableDiffusionSafetyChecker as StableDiffusionSafetyChecker
from .models.unet_2d import UNet2DModel as UNet2DModel
from .models.unet_2d_condition import UNet2DConditionModel as UNet2DConditionModel
from .pipelines.base import DiffusionPipeline as DiffusionPipeline
from .pipelines.base import ImagePipelineOutput as ImagePipelineOutput
from .pipelines.ddim import DDIMPipeline as DDIMPipeline
from .pipelines.ddpm import DDPMPipeline as DDPMPipeline
from .pipelines.stable_diffusion import StableDiffusionPipeline as StableDiffusionPipeline
from .schedulers.base import Scheduler as Scheduler
from .schedulers.ddim import DDIMScheduler as DDIMScheduler
from .schedulers.ddpm import DDPMScheduler as DDPMScheduler
from .schedulers.euler import EulerDiscreteScheduler as EulerDiscreteScheduler
from .schedulers.pndm import PNDMScheduler as PNDMScheduler
from .tokenizer import CLIPTokenizer as CLIPTokenizer

__version__: str
