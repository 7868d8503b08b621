// A running Tollgate with the demo's data, and a browser to look at it.
"use strict";

const { spawn, execFileSync } = require("node:child_process");
const { mkdirSync, mkdtempSync, existsSync, rmSync, openSync, closeSync, readFileSync } = require("node:fs");
const { createServer } = require("node:net");
const { tmpdir } = require("node:os");
const path = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");
const { chromium } = require("playwright-core");

const ROOT = path.resolve(__dirname, "../..");
const TARGET = targetFolder();
const SCREENSHOTS = path.join(TARGET, "console");
const START_MS = 60_000;
const ADMIN = "demo";

function targetFolder() {
  const metadata = ["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"];
  return JSON.parse(execFileSync("cargo", metadata, { cwd: ROOT, maxBuffer: 1 << 26 })).target_directory;
}

// A port that nobody listens at, below those that the system hands out.
async function freePort() {
  const start = 10_000 + Math.floor(Math.random() * 10_000);
  for (let port = start; port < start + 500; port += 1) {
    const isFree = await new Promise((resolve) => {
      const server = createServer();
      server.once("error", () => resolve(false));
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
    });
    if (isFree) {
      return port;
    }
  }
  throw new Error("no free port");
}

// Serves the demo until `stop` is called.
async function serve(settings = {}) {
  const binary = path.join(TARGET, "debug", "tollgate");
  if (!existsSync(binary)) {
    throw new Error(`${binary} is missing: cargo build --locked`);
  }
  const [main, operations] = [await freePort(), await freePort()];
  const folder = mkdtempSync(path.join(tmpdir(), "tollgate-console."));
  const log = path.join(folder, "log");
  const output = openSync(log, "w");
  const own = Object.entries(process.env).filter(([name]) => !name.startsWith("TOLLGATE_"));
  const environment = {
    ...Object.fromEntries(own),
    TOLLGATE_LISTEN: `127.0.0.1:${main}`,
    TOLLGATE_OPS_LISTEN: `127.0.0.1:${operations}`,
    // A machine that does much else is slow to answer.
    TOLLGATE_HOOK_TIMEOUT: "10s",
    TOLLGATE_LOG: "warn",
    TMPDIR: folder,
    ...settings,
  };
  const stdio = ["ignore", output, output];
  const child = spawn(binary, ["serve", "--demo"], { env: environment, stdio, cwd: folder });
  closeSync(output);
  const ended = new Promise((resolve) => child.once("exit", (code, signal) => resolve(code ?? signal)));
  const url = `http://127.0.0.1:${main}`;
  const deadline = Date.now() + START_MS;
  for (;;) {
    const isReady = await fetch(`http://127.0.0.1:${operations}/readyz`).then((answer) => answer.ok, () => false);
    if (isReady) {
      break;
    }
    if (child.exitCode !== null || Date.now() > deadline) {
      child.kill("SIGKILL");
      throw new Error(`the service is not ready:\n${readFileSync(log)}`);
    }
    await sleep(50);
  }
  const call = async (method, target, body, token = ADMIN) => {
    const answer = await fetch(url + target, {
      method,
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
    const text = await answer.text();
    return { status: answer.status, body: text === "" ? null : JSON.parse(text) };
  };
  const removed = async (user, client, scopes) => {
    const answer = await fetch(`${url}/v1/customize-access-token`, {
      method: "POST",
      headers: {
        authorization: `Basic ${Buffer.from("hook:hook").toString("base64")}`,
        "content-type": "application/json",
      },
      body: JSON.stringify({ user: { id: user }, client: { id: client }, scopes }),
    });
    return (await answer.json()).removeScopes;
  };
  const stop = async () => {
    child.kill("SIGTERM");
    const code = await Promise.race([ended, sleep(20_000).then(() => "not in time")]);
    child.kill("SIGKILL");
    const text = readFileSync(log, "utf8");
    rmSync(folder, { recursive: true, force: true });
    if (code !== 0) {
      throw new Error(`the service ended with ${code}:\n${text}`);
    }
  };
  return { url, call, removed, stop };
}

// A browser, with a profile of its own that goes with it.
function launch() {
  const args = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"];
  args.push("--disable-component-update", "--disable-sync", "--no-sandbox", "--disable-dev-shm-usage");
  return chromium.launch({ executablePath: process.env.TEST_CHROMIUM, headless: true, args });
}

// A page in a context of its own. What goes wrong in it is collected: errors, refused loads, requests to other places.
async function open(browser, url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  const faults = [];
  page.on("pageerror", (error) => faults.push(`error: ${error.message}`));
  page.on("dialog", (dialog) => {
    faults.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("console", (message) => {
    // A status that is no success is told, too: the tests look at those themselves.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) {
      faults.push(`console: ${message.text()}`);
    }
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) {
      faults.push(`request to ${request.url()}`);
    }
  });
  return { page, context, faults };
}

async function signIn(page, url, token = ADMIN) {
  await page.goto(`${url}/console/sign-in`);
  await page.getByLabel("API token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("heading", { name: "Look for a user or a client" }).waitFor();
}

async function shoot(page, name) {
  mkdirSync(SCREENSHOTS, { recursive: true });
  await page.screenshot({ path: path.join(SCREENSHOTS, `${name}.png`), fullPage: true });
}

module.exports = { ROOT, ADMIN, serve, launch, open, signIn, shoot };
