// Has Dawn, Chrome's implementation of WebGPU, compile every shader of a folder (`GEMMA3_WGSL`, see `mod.rs`) for a device
// with no more than WebGPU promises. Needs no GPU: Dawn's null backend validates and runs nothing.
//
//     npm install webgpu && node check.mjs FOLDER
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { create, globals } from 'webgpu';

Object.assign(globalThis, globals);
const folder = process.argv[2];
const adapter = await create(['backend=null']).requestAdapter();
const device = await adapter.requestDevice({ requiredFeatures: ['subgroups'] });
const names = readdirSync(folder).filter((name) => name.endsWith('.wgsl')).sort();
let refused = 0;
for (const name of names) {
    const code = readFileSync(join(folder, name), 'utf8');
    device.pushErrorScope('validation');
    const module = device.createShaderModule({ code });
    const entryPoint = /fn (\w+)\(/.exec(code.slice(code.indexOf('@compute')))?.[1];
    device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint } });
    const error = await device.popErrorScope();
    if (error) {
        refused += 1;
        console.log(`${name}: ${error.message}`);
    }
}
console.log(`${names.length} shaders, ${refused} refused`);
process.exit(refused === 0 && names.length > 0 ? 0 : 1);
