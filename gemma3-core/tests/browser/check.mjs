// Has Dawn, Chrome's implementation of WebGPU, compile every shader of a folder (`GEMMA3_WGSL`, see `mod.rs`). Needs no
// GPU: Dawn's null backend checks and runs nothing.
//
//     npm install webgpu && node check.mjs FOLDER
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create } from 'webgpu';

const folder = process.argv[2];
const gpu = create(['backend=null']); // Held on to: it ends with what is made of it.
const adapter = await gpu.requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });
const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl')).sort();
let refused = 0;
for (const name of names) {
    device.pushErrorScope('validation');
    device.createShaderModule({ code: readFileSync(join(folder, name), 'utf8') });
    const error = await device.popErrorScope();
    if (error) {
        refused += 1;
        console.log(`${name}: ${error.message}`);
    }
}
console.log(`${names.length} shaders, ${refused} refused`);
process.exit(refused === 0 && names.length > 0 ? 0 : 1);
