// Features of pictures in a browser (or Node) by onnxruntime-web. See docs/browser.md.

/** Float32Array of D features of an ImageData of any size; `session` is of encoder.any-size.onnx. */
export async function features(ort, session, picture) {
  const { data, width, height } = picture; // RGBA
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  const images = new ort.Tensor("uint8", rgb, [1, height, width, 3]);
  return (await session.run({ images })).features.data;
}
