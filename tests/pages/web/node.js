// node node.js BUNDLE: prints the figures of `checkBundle` as JSON.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { checkBundle } from "./golden.js";

async function read(name) {
  const file = await readFile(`${process.argv[2]}/${name}`);
  return file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
}

console.log(JSON.stringify(await checkBundle(ort, read)));
