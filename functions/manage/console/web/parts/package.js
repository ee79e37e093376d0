// Files of one upload: a model, a model with its weights, or parts with a manifest that lists them.
import { sha256 } from "parts/digest";

const LEFT_OUT = /\.(safetensors|gguf|pt|pth|ckpt|h5|keras|tflite|msgpack|pkl|joblib|py|ipynb|md|png|csv|npz)$|^\./i;

// The files in their order: the last one registers. Throws what has to change.
export async function packageOf(files) {
  if (files.length === 1) return describe([[files[0].name, files[0]]]);
  const given = files.find((file) => file.name === "manifest.json"), rest = files.filter((file) => file !== given && !LEFT_OUT.test(file.name));
  const models = rest.filter((file) => /\.onnx$/i.test(file.name));
  if (models.length !== 1) throw new Error(`a package has one .onnx file, and these are ${models.length}: choose one with its weights`);
  const [model] = models, weights = rest.filter((file) => file !== model);
  if (!given && weights.every((file) => [`${model.name}.data`, `${model.name}_data`].includes(file.name))) return describe([...weights, model].map((file) => [file.name, file]));
  const parts = await describe(rest.map((file) => [`parts/${file.name}`, file]));
  const listed = parts.map((part) => ({ path: part.file, size: part.size_bytes, sha256: part.sha256 }));
  const manifest = { schema: 1, ...(given ? JSON.parse(await given.text()) : {}), files: listed };
  return [...parts, ...(await describe([["manifest.json", new Blob([JSON.stringify(manifest)])]]))];
}

const describe = (files) => Promise.all(files.map(async ([name, blob]) => ({ file: name, size_bytes: blob.size, sha256: await sha256(blob), blob })));
