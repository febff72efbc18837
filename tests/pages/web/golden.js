// The golden inputs of a bundle through onnxruntime-web: how far each graph is from its golden outputs.

import { features } from "../../docs/browser/features.js";

/** The tensors of a safetensors file: {name: {dtype, shape, data}}. */
function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const kinds = { U8: Uint8Array, F32: Float32Array };
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    tensors[name] = { shape, data: new kinds[dtype](buffer.slice(8 + length + start, 8 + length + end)) };
  }
  return tensors;
}

/** Largest |difference| / largest |expected| and smallest cosine over the rows. */
function compare(expected, found, [rows, dim]) {
  let error = 0;
  let cosine = 1;
  for (let row = 0; row < rows; row++) {
    let [difference, largest, dot, a, b] = [0, 0, 0, 0, 0];
    for (let i = row * dim; i < (row + 1) * dim; i++) {
      difference = Math.max(difference, Math.abs(found[i] - expected[i]));
      largest = Math.max(largest, Math.abs(expected[i]));
      dot += found[i] * expected[i];
      a += found[i] ** 2;
      b += expected[i] ** 2;
    }
    error = Math.max(error, difference / largest);
    cosine = Math.min(cosine, dot / Math.sqrt(a * b));
  }
  return { error, cosine };
}

/** {graph: {error, cosine}} for every graph of a bundle; `read(name)` gives a file of it as an ArrayBuffer. */
export async function checkBundle(ort, read) {
  const golden = readSafetensors(await read("golden.safetensors"));
  const manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
  const result = {};
  for (const graph of Object.keys(manifest.files).filter((name) => name.endsWith(".onnx"))) {
    const session = await ort.InferenceSession.create(new Uint8Array(await read(graph)));
    const inputs = golden[`${graph}:images`] ?? golden.images;
    const outputs = graph === "encoder.onnx" ? golden.features : golden[graph];
    const images = new ort.Tensor("uint8", inputs.data, inputs.shape);
    const found = (await session.run({ images }))[graph === "classifier.onnx" ? "logits" : "features"].data;
    result[graph] = compare(outputs.data, found, outputs.shape);
    if (graph === "encoder.any-size.onnx") result["features.js"] = await checkDocumented(ort, session, inputs, outputs);
  }
  return result;
}

/** The same picture as a browser has it, with an alpha channel, through the documented function. */
async function checkDocumented(ort, session, inputs, outputs) {
  const [, height, width] = inputs.shape;
  const data = new Uint8ClampedArray(height * width * 4).fill(255);
  for (let i = 0; i < height * width; i++) for (let c = 0; c < 3; c++) data[4 * i + c] = inputs.data[3 * i + c];
  return compare(outputs.data, await features(ort, session, { data, width, height }), [1, outputs.shape[1]]);
}
