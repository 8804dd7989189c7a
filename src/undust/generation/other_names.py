"""Options as other programs call them: diffusers, Stable Diffusion's scripts, web UIs, InvokeAI."""

from __future__ import annotations

_NAMES = {  # an option here -> the same elsewhere
    "model": (
        "ckpt ckpt_path ckpt_name checkpoint checkpoint_path model_id model_name model_path "
        "pretrained_model_name_or_path sd_model base_model diffusion_model m"
    ),
    "prompt": "p positive positive_prompt text caption",
    "negative": "negative_prompt neg_prompt n_prompt neg negative_prompts uc",
    "steps": (
        "ddim_steps num_inference_steps inference_steps num_steps n_steps sampling_steps "
        "sample_steps"
    ),
    "guidance": (
        "cfg cfg_scale scale guidance_scale cfg_guidance unconditional_guidance_scale "
        "classifier_free_guidance C"
    ),
    "sampler": "sampler_name sampling_method sample_method sampler_index scheduler solver plms A",
    "schedule": "schedule_type scheduler_type noise_schedule sigmas karras use_karras_sigmas",
    "seed": "seeds random_seed manual_seed generator noise_seed S",
    "size": (
        "width height W H resolution image_size img_size sizes dimensions image_width image_height"
    ),
    "count": (
        "num_images n_samples n_iter num_images_per_prompt num_outputs num_samples batch_size "
        "batch_count iterations n_images number_of_images images num b"
    ),
    "init": (
        "input image init_image init_img input_image img source_image init_images image_path i I"
    ),
    "strength": "denoise denoising_strength denoising denoise_strength img2img_strength f",
    "mask": "mask_image inpaint_mask init_mask mask_path M",
    "extend": "outpaint outpainting outcrop",
    "upscale": "hires hires_fix enable_hr hr_scale hires_upscale upscale_by upscale_factor U",
    "lora": "loras lora_path lora_weights lora_model lora_name lora_model_dir lora_scale",
    "control": "controlnet control_net controlnet_path control_image control_strength",
    "embedding": "embeddings textual_inversion embedding_path embeddings_path embd_dir",
    "clip_skip": "clipskip clip_stop_at_last_layers",
    "refiner": (
        "refiner_model refiner_path refiner_checkpoint refiner_switch_at denoising_end "
        "high_noise_frac"
    ),
    "vae": "vae_path vae_name sd_vae autoencoder",
    "dtype": "precision torch_dtype fp16 half bf16 float16 type weight_dtype mixed_precision",
    "device": "gpu cuda gpu_id use_cpu cpu device_id",
    "out": (
        "output outdir out_dir output_dir output_path output_file outfile save_path save_dir "
        "filename o"
    ),
}
OTHER_NAMES = {other: name for name, others in _NAMES.items() for other in others.split()}
"""An option elsewhere -> the option here, both with "_" between words."""
