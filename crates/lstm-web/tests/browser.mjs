// `node browser.mjs SITE [SCREENSHOTS]`: runs the checks in headless Chromium, in a page and in a Worker, in each module, and
// uses the demo. With a folder for screenshots, takes them. `playwright-core` is found from the working directory.

import { createRequire } from "node:module";
import { mkdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { gzipSync } from "node:zlib";
import { serve } from "./serve.mjs";

/** Most bytes of a module, with gzip, so that it does not grow unnoticed. */
const MAX_MODULE_BYTES = 850 * 1024;

/** Most minutes of the checks, which take one or two. */
const TIME_LIMIT_MINUTES = 10;

const { chromium } = createRequire(path.join(process.cwd(), "here.js"))("playwright-core");
const [site, screenshots] = process.argv.slice(2);
let identical = 0;
const different = [];
const record = (name, isIdentical, detail = "") => {
  if (isIdentical) identical++;
  else different.push(name);
  if (!isIdentical || detail) console.log(`${isIdentical ? "identical" : "DIFFERS  "} ${name}${detail ? `: ${detail}` : ""}`);
};

for (const module of ["relaxed", "simd128", "convert"]) {
  const bytes = readFileSync(path.join(site, `lstm-web/lstm-web-${module}.wasm`));
  const size = gzipSync(bytes, { level: 9 }).length;
  record(`size of ${module}`, size <= MAX_MODULE_BYTES, `${bytes.length} bytes, ${size} with gzip`);
}

// A Worker that never answers, or audio that never renders, is an error.
setTimeout(() => {
  console.error(`error: the checks took more than ${TIME_LIMIT_MINUTES} minutes`);
  process.exit(1);
}, TIME_LIMIT_MINUTES * 60000).unref();
const { server, url } = await serve(site);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"],
});
console.log(`Chromium ${browser.version()}`);
const problems = [];

async function open(options) {
  const page = await browser.newPage(options);
  page.on("request", (request) => request.url().startsWith(url) || /^(data|blob):/.test(request.url()) || problems.push(`request to ${request.url()}`));
  page.on("pageerror", (error) => problems.push(String(error)));
  // The checks ask for a module that is missing.
  page.on("console", (message) => message.type() === "error" && !message.location().url.endsWith("/missing.wasm") && problems.push(message.text()));
  return page;
}

try {
  const page = await open();
  await page.goto(`${url}checks.html`);
  for (const module of ["relaxed", "simd128"]) {
    const inPage = await page.evaluate(async (module) => (await import("/checks.js")).run(module), module);
    const inWorker = await page.evaluate(
      (module) =>
        new Promise((resolve, reject) => {
          const worker = new Worker("/checks-worker.js", { type: "module" });
          worker.onerror = (event) => reject(new Error(event.message));
          worker.onmessageerror = () => reject(new Error("the Worker's answer can't be read"));
          worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data.results));
          worker.postMessage(module);
        }),
      module,
    );
    for (const result of inPage) record(`${module}: ${result.name}`, result.identical, result.detail);
    for (const result of inWorker) record(`${module} in a Worker: ${result.name}`, result.identical, result.identical ? "" : result.detail);
  }

  const { speed } = JSON.parse(readFileSync(path.join(site, "data/expected.json"), "utf8"));
  const times = { [`native ${speed.instructions}`]: speed };
  for (const module of ["simd128", "relaxed"]) {
    Object.assign(times, await page.evaluate(async (module) => (await import("/checks.js")).speed(module), module));
  }
  const { plain } = times;
  console.log("\ninstructions        step of hidden 24      100 steps 64 -> 128");
  for (const [name, { stepNs, forwardMs }] of Object.entries(times)) {
    const ratio = (value) => `(${value.toFixed(1)} x)`.padStart(9);
    console.log(`${name.padEnd(18)} ${stepNs.toFixed(0).padStart(6)} ns ${ratio(plain.stepNs / stepNs)} ${forwardMs.toFixed(2).padStart(9)} ms ${ratio(plain.forwardMs / forwardMs)}`);
  }
  console.log();
  await page.close();
  record("no errors and no requests to other hosts", problems.length === 0, problems.join("; "));
  await demo();
} finally {
  await browser.close();
  server.close();
}

/** Uses the demo as a user does. */
async function demo() {
  problems.length = 0;
  const page = await open({ viewport: { width: 1000, height: 900 }, colorScheme: "light" });
  await page.goto(url);
  const status = page.locator("#model-status");
  const expectText = async (name, locator, pattern, timeout = 60000) => {
    try {
      await locator.filter({ hasText: pattern }).waitFor({ timeout });
      record(`demo: ${name}`, true);
    } catch {
      record(`demo: ${name}`, false, `expected ${pattern}, got ${await locator.textContent({ timeout: 1000 }).catch(() => "nothing")}`);
    }
  };
  await page.setInputFiles("#model-file", { name: "broken.nam", mimeType: "", buffer: readFileSync(path.join(site, "data/broken.nam")) });
  await expectText("a broken file shows the library's error", page.locator("#model-status.error"), /EOF|expected|JSON/i);
  await page.setInputFiles("#model-file", path.join(site, "data/keras-last.keras"));
  await expectText("a Keras model is open", status, "keras-last.keras is open.");
  await expectText("layers are listed", page.locator("#layers"), /lstm/);
  // By keyboard alone: the sample, the amp, the training.
  await page.focus("#sample");
  await page.keyboard.press("Enter");
  await expectText("the sample is open", status, "amp.safetensors is open.");
  record("demo: the name of the other file is gone", (await page.inputValue("#model-file")) === "");
  await page.focus("#play");
  await page.keyboard.press("Enter");
  await expectText("the amp plays", page.locator("#amp-status"), /^Playing through/);
  await expectText("the load is shown", page.locator("#load-text"), /% of real time/);
  if (screenshots) await page.screenshot({ path: path.join(screenshots, "web-amp.png"), fullPage: false });
  await page.focus("#stop");
  await page.keyboard.press("Enter");
  await expectText("the amp stops", page.locator("#amp-status"), "Stopped.");
  record("demo: the button keeps the focus", await page.evaluate(() => document.activeElement.id === "stop"));
  record("demo: the load is not read out", await page.evaluate(() => !document.querySelector("#load-text").closest("output, [role=status], [aria-live]")));
  // Permission for the microphone comes after the user has stopped.
  await page.evaluate(() => {
    window.microphone = "not asked for";
    navigator.mediaDevices.getUserMedia = () => {
      window.microphone = "asked for";
      return new Promise((resolve) => (window.allow = () => resolve({ getTracks: () => [{ stop: () => (window.microphone = "off") }] })));
    };
  });
  await page.check("input[value=microphone]");
  await page.click("#play");
  await page.waitForFunction(() => window.microphone === "asked for");
  await page.click("#stop");
  await page.evaluate(() => window.allow());
  const isOff = await page.waitForFunction(() => window.microphone === "off", null, { timeout: 5000 }).then(() => true, () => false);
  record("demo: a microphone that is allowed too late is turned off", isOff);
  await expectText("the amp stays stopped", page.locator("#amp-status"), "Stopped.");
  await page.check("input[value=string]");
  await page.focus("#train");
  await page.keyboard.press("Enter");
  await expectText("the digest of the forecast equals native's", page.locator("#digest-result"), "equal", 120000);
  const unnamed = await page.evaluate(() =>
    [...document.querySelectorAll("input, button, meter, progress")].filter((e) => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim())).map((e) => e.id),
  );
  record("demo: every control has a name", unnamed.length === 0, unnamed.join(", "));
  for (const [name, width, colorScheme] of [["light", 1000, "light"], ["dark", 1000, "dark"], ["phone", 360, "light"]]) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize({ width, height: 900 });
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    record(`demo: ${name} needs no scrolling sideways`, overflow <= 0, overflow > 0 ? `${overflow} pixels` : "");
    if (screenshots) {
      mkdirSync(screenshots, { recursive: true });
      await page.screenshot({ path: path.join(screenshots, `web-${name}.png`), fullPage: true });
    }
  }
  record("demo: no errors and no requests to other hosts", problems.length === 0, problems.join("; "));
}

different.forEach((name) => console.log(`differs: ${name}`));
console.log(`${identical} identical, ${different.length} differ`);
process.exitCode = different.length === 0 ? 0 : 1;
