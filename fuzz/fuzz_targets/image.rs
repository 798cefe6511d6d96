#![no_main]

gemma3_fuzz::fuzz!(gemma3_fuzz::targets::IMAGE);
