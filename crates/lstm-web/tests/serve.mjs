// Serves a folder on this machine: `node serve.mjs FOLDER [PORT]`.

import { createReadStream, statSync } from "node:fs";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";

const TYPES = { ".css": "text/css", ".html": "text/html; charset=utf-8", ".js": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };

/** Starts a server and returns it with its address. */
export async function serve(folder, port = 0) {
  const root = path.resolve(folder);
  const server = http.createServer((request, response) => {
    let file;
    let isFile;
    try {
      const { pathname } = new URL(`http://127.0.0.1${request.url}`);
      file = path.join(root, path.normalize(decodeURIComponent(pathname)));
      if (pathname.endsWith("/")) file = path.join(file, "index.html");
      isFile = file.startsWith(root + path.sep) && statSync(file, { throwIfNoEntry: false })?.isFile();
    } catch {
      response.writeHead(400).end("expected the address of a file");
      return;
    }
    if (!isFile) {
      response.writeHead(404).end("not found");
      return;
    }
    response.setHeader("content-type", TYPES[path.extname(file)] ?? "application/octet-stream");
    createReadStream(file).pipe(response);
  });
  await new Promise((resolve, reject) => server.once("error", reject).listen(port, "127.0.0.1", resolve));
  return { server, url: `http://127.0.0.1:${server.address().port}/` };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder, port = "8080"] = process.argv.slice(2);
  const { url } = await serve(folder, Number(port));
  console.log(`The demo is at ${url}. Press Ctrl+C to stop.`);
}
