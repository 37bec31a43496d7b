// Attributes of people from JavaScript, with ONNX Runtime: in Node.js as below, in a browser with `toPatches` from this file.
//
//     vlm-par export your-name/your-checkpoint --to onnx --patch-grid 16x8 --out exported
//     npm install onnxruntime-node
//     node examples/elsewhere/attributes.mjs exported/model.onnx exported/labels.txt exported/person.ppm
//
// labels.txt is written as docs/elsewhere.md shows. A picture is a binary PPM (P6), so that this file needs no library for images. In a
// browser, `context.getImageData(0, 0, width, height).data` of a canvas has the pixels, 4 channels each.

const PATCH = 16;

// Linear interpolation over as many pixels as one new pixel covers (antialias), along one axis.
function resizeAxis(values, before, length, after, size) {
  const resized = new Float32Array(before * size * after);
  const scale = length / size;
  const support = Math.max(1, scale);
  for (let target = 0; target < size; target++) {
    const center = (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const weights = [];
    for (let source = first; source < last; source++) {
      weights.push(Math.max(0, 1 - Math.abs((source - center + 0.5) / support)));
    }
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    for (let i = 0; i < before; i++) {
      for (let k = 0; k < after; k++) {
        let sum = 0;
        for (let source = first; source < last; source++) {
          sum += weights[source - first] * values[(i * length + source) * after + k];
        }
        resized[(i * size + target) * after + k] = Math.floor(sum / total + 0.5); // whole grey levels, as in Pillow
      }
    }
  }
  return resized;
}

/**
 * What the model reads: rows x columns patches, each 16 x 16 x 3 values from -1 to 1.
 * `pixels` are 0 to 255, row by row, with 3 channels (RGB) or 4 (RGBA, of which the last is left out).
 */
export function toPatches(pixels, width, height, rows, columns) {
  const channels = pixels.length / (width * height);
  const wide = resizeAxis(pixels, height, width, channels, columns * PATCH);
  const all = resizeAxis(wide, 1, height, columns * PATCH * channels, rows * PATCH);
  const patches = new Float32Array(rows * columns * PATCH * PATCH * 3);
  let next = 0;
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      for (let y = 0; y < PATCH; y++) {
        for (let x = 0; x < PATCH; x++) {
          const pixel = ((row * PATCH + y) * columns * PATCH + column * PATCH + x) * channels;
          for (let channel = 0; channel < 3; channel++) patches[next++] = all[pixel + channel] / 127.5 - 1;
        }
      }
    }
  }
  return patches;
}

function readPpm(bytes) {
  const header = /^P6\s+(\d+)\s+(\d+)\s+255\s/.exec(bytes.subarray(0, 64).toString("latin1"));
  if (header === null) throw new Error("expected a binary PPM (P6) with 8 bits");
  return { width: Number(header[1]), height: Number(header[2]), pixels: bytes.subarray(header[0].length) };
}

async function main([model, labels, ...pictures]) {
  const { createRequire } = await import("node:module");
  const { readFileSync } = await import("node:fs");
  const ort = createRequire(`${process.cwd()}/`)("onnxruntime-node"); // installed where you are
  const [grid, ...attributes] = readFileSync(labels, "utf8").trimEnd().split("\n").map((line) => line.split("\t"));
  const [rows, columns] = grid.map(Number);
  const session = await ort.InferenceSession.create(model);
  for (const path of pictures) {
    const { width, height, pixels } = readPpm(readFileSync(path));
    const patches = toPatches(pixels, width, height, rows, columns);
    const input = new ort.Tensor("float32", patches, [1, rows * columns, PATCH * PATCH * 3]);
    const { decided, probabilities } = await session.run({ pixel_values: input });
    attributes.forEach(([name, ...answers], index) => {
      const answer = Number(decided.data[index]);
      const probability = probabilities.data[index * probabilities.dims[2] + answer];
      console.log([name, answers[answer], probability.toFixed(4)].join("\t"));
    });
  }
}

if (typeof process !== "undefined" && process.argv[1]?.endsWith("attributes.mjs")) {
  await main(process.argv.slice(2));
}
