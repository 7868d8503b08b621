// The console in a real browser: the story of a support call, with a mouse, with a keyboard, without a script; what an
// accessibility checker says of each page; and what hostile names do not do. Screenshots go to target/console/.
"use strict";

const assert = require("node:assert/strict");
const { after, before, describe, test } = require("node:test");
const { readFileSync } = require("node:fs");
const { launch, open, serve, shoot, signIn } = require("./tollgate.cjs");

const AXE = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const USER = "myUserId22700111101";
const HOSTILE = "\"'><img src=x onerror=\"window.hit=1\"><script>window.hit=1</script>\u202egnp.exe\r\nline\ttab";
const PHONE = { viewport: { width: 360, height: 740 } };

let tollgate;
let browser;

before(async () => {
  tollgate = await serve();
  browser = await launch();
});

after(async () => {
  await browser?.close();
  await tollgate?.stop();
});

const subjectPath = (id, more = "") => `/console/subject?type=user&id=${encodeURIComponent(id)}${more}`;

// A user of the test's own, whose subscription has expired.
async function customer(id, state = {}) {
  const day = 86_400_000;
  const at = (days) => new Date(Date.now() + days * day).toISOString();
  const body = {
    subject: { type: "user", id },
    scopes: ["email"],
    validFrom: at(-60),
    validUntil: at(-30),
    ...state,
  };
  const created = await tollgate.call("POST", "/v1/subscriptions", body);
  assert.equal(created.status, 201, JSON.stringify(created.body));
  return created.body.id;
}

// The page as an accessibility checker sees it. It runs in a world of its own, which the page's policy does not reach.
async function axe(page, name) {
  const session = await page.context().newCDPSession(page);
  const { frameTree } = await session.send("Page.getFrameTree");
  const { executionContextId: contextId } = await session.send("Page.createIsolatedWorld", {
    frameId: frameTree.frame.id,
    worldName: "axe",
  });
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await session.send("Runtime.evaluate", {
      expression,
      contextId,
      awaitPromise: true,
      returnByValue: true,
    });
    assert.equal(exceptionDetails, undefined, JSON.stringify(exceptionDetails));
    return result.value;
  };
  await evaluate(`${AXE}; true`);
  const run = `axe.run(document, { resultTypes: ["violations"] }).then((found) => ({
    passes: found.passes.length,
    violations: found.violations.map(({ id, nodes }) => id + ": " +
      nodes.map((node) => node.target.join(" ") + " " + node.failureSummary).join("; ")),
  }))`;
  const { passes, violations } = await evaluate(run);
  assert.deepEqual(violations, [], name);
  assert.ok(passes >= 10, `${name}: the checker looked at something (${passes})`);
  await session.detach();
}

async function fits(page, name) {
  const [is, has] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  assert.ok(is <= has, `${name} is ${is} wide, and the window ${has}`);
}

describe("the console", () => {
  test("a stranger finds out why a customer lost a scope, and puts it right, within a minute", async () => {
    assert.deepEqual(await tollgate.removed(USER, "client", ["profile", "email"]), ["email"]);
    const { page, context, faults } = await open(browser, tollgate.url);
    const start = Date.now();
    await page.goto(`${tollgate.url}/console`);
    await shoot(page, "1-sign-in");
    await page.getByLabel("API token").fill("demo");
    await page.getByRole("button", { name: "Sign in" }).click();
    await shoot(page, "2-search");
    await page.getByLabel("Id, exactly as Access knows it").fill(USER);
    await page.getByRole("button", { name: "Show" }).click();

    const row = page.getByRole("row", { name: /^email/ });
    await row.getByText("removed").first().waitFor();
    assert.match(await row.innerText(), /the subscription has expired: S\d ended .* \(30 days ago\)/);
    await shoot(page, "3-why");
    await row.getByRole("link", { name: /Renew/ }).click();
    await page.getByText("1 scope would be kept from now on").waitFor();
    await shoot(page, "4-preview");
    assert.deepEqual(await tollgate.removed(USER, "client", ["email"]), ["email"], "nothing is done yet");
    await page.getByRole("button", { name: "Renew", exact: true }).click();
    await page.getByRole("status").filter({ hasText: "is renewed" }).waitFor();
    await row.getByText("kept").first().waitFor();
    await shoot(page, "5-put-right");
    const seconds = (Date.now() - start) / 1000;
    assert.deepEqual(await tollgate.removed(USER, "client", ["profile", "email"]), []);
    assert.ok(seconds < 60, `it took ${seconds} s`);
    await page.getByRole("button", { name: /^Undo/ }).click();
    await page.getByRole("status").filter({ hasText: "has its former end again" }).waitFor();
    assert.deepEqual(await tollgate.removed(USER, "client", ["email"]), ["email"]);
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("the same by the keyboard alone", async () => {
    await customer("keyboard");
    const { page, context, faults } = await open(browser, tollgate.url);
    const keys = page.keyboard;
    // Goes on until what has the focus says what is looked for, as somebody would who listens.
    const tabTo = async (words) => {
      for (let presses = 0; presses < 80; presses += 1) {
        const said = await page.evaluate(() => {
          const { activeElement: element } = document;
          const outline = getComputedStyle(element).outlineStyle;
          const label = element.labels?.[0]?.innerText ?? element.innerText ?? "";
          return { label, isSeen: outline !== "none" };
        });
        if (words.test(said.label)) {
          assert.ok(said.isSeen, `the focus on "${said.label}" is not seen`);
          return;
        }
        await keys.press("Tab");
      }
      assert.fail(`no key leads to ${words}`);
    };
    await page.goto(`${tollgate.url}/console/sign-in`);
    await tabTo(/^API token/);
    await keys.type("demo");
    await keys.press("Enter");
    await page.getByRole("heading", { name: "Look for a user or a client" }).waitFor();
    await tabTo(/^Id, exactly/);
    await keys.type("keyboard");
    await keys.press("Enter");
    await page.getByRole("heading", { name: "User keyboard" }).waitFor();
    await keys.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.innerText), "Skip to the content");
    await keys.press("Enter");
    assert.equal(await page.evaluate(() => document.activeElement.id), "main");
    await tabTo(/^Renew S1/);
    await keys.press("Enter");
    await page.getByText("1 scope would be kept from now on").waitFor();
    await tabTo(/a month$/);
    await keys.press("ArrowDown");
    await page.getByText("until:").filter({ hasText: "→" }).first().waitFor();
    await tabTo(/^Renew$/);
    await keys.press("Enter");
    await page.getByText("is renewed").waitFor();
    assert.equal(await page.evaluate(() => document.activeElement.id), "notice", "what was done is read first");
    assert.deepEqual(await tollgate.removed("keyboard", "client", ["email"]), []);
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("the same without a script", async () => {
    await customer("scriptless");
    const { page, context } = await open(browser, tollgate.url, { javaScriptEnabled: false });
    await signIn(page, tollgate.url);
    await page.getByLabel("Id, exactly as Access knows it").fill("scriptless");
    await page.getByRole("button", { name: "Show" }).click();
    await page.getByText("0 kept").waitFor({ state: "detached" });
    assert.equal(await page.getByLabel("Slide through time").count(), 0);
    const then = new Date(Date.now() - 40 * 86_400_000).toISOString().slice(0, 19);
    await page.getByLabel("At (UTC; empty: now)").fill(then);
    await page.getByRole("button", { name: "Ask" }).click();
    await page.getByRole("row", { name: /^email/ }).getByText("kept").first().waitFor();
    await page.getByRole("link", { name: "Renew S1" }).first().click();
    await page.getByLabel("three months").check();
    await page.getByRole("button", { name: "Show what it would come to" }).click();
    await page.getByText("1 scope would be kept from now on").waitFor();
    await page.getByRole("button", { name: "Renew", exact: true }).click();
    await page.getByText("is renewed").waitFor();
    assert.deepEqual(await tollgate.removed("scriptless", "client", ["email"]), []);
    await page.getByRole("button", { name: /^Undo/ }).click();
    await page.getByText("has its former end again").waitFor();
    assert.deepEqual(await tollgate.removed("scriptless", "client", ["email"]), ["email"]);
    await context.close();
  });

  test("what was chosen is confirmed only when it is shown", async () => {
    const subscription = await customer("hasty");
    const { page, context, faults } = await open(browser, tollgate.url);
    await signIn(page, tollgate.url);
    await page.goto(`${tollgate.url}/console/change?type=user&id=hasty&verb=renew&on=${subscription}`);
    const confirm = page.getByRole("button", { name: "Renew", exact: true });
    assert.equal(await confirm.isEnabled(), true);
    let release;
    const released = new Promise((resolve) => {
      release = resolve;
    });
    await page.route("**/console/change?*", async (route) => {
      await released;
      // One that was given up is no longer there.
      await route.continue().catch(() => undefined);
    });
    const asked = page.waitForRequest("**/console/change?*");
    await page.getByLabel("three months").check();
    assert.equal(await confirm.isDisabled(), true, "before it is asked for");
    await asked;
    assert.equal(await confirm.isDisabled(), true, "before the answer");
    // The answer to the former choice is none to this one.
    await page.getByLabel("a year").check();
    release();
    await page.locator(".confirm button:enabled").click();
    await page.getByText("is renewed").waitFor();
    const { body } = await tollgate.call("GET", `/v1/subscriptions/${subscription}`);
    assert.ok(Date.parse(body.validUntil) - Date.now() > 300 * 86_400_000, body.validUntil);

    // An answer without a preview is shown as the page that it is.
    await page.goto(`${tollgate.url}/console/change?type=user&id=hasty&verb=renew&on=${subscription}`);
    await page.unroute("**/console/change?*");
    await page.route("**/console/change?*", (route) =>
      route.fulfill({ status: 503, contentType: "text/html", body: "<h1>Overloaded</h1>" }),
    );
    await page.getByLabel("three months").check();
    await page.getByRole("heading", { name: "Overloaded" }).waitFor();
    assert.equal(await confirm.count(), 0);
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("the answer follows the slider, without another page", async () => {
    const { page, context, faults } = await open(browser, tollgate.url);
    await signIn(page, tollgate.url);
    await page.goto(tollgate.url + subjectPath("late"));
    const slider = page.getByLabel("Slide through time");
    await slider.waitFor();
    await page.evaluate(() => {
      window.isSamePage = true;
    });
    const summary = page.locator("#answer-summary");
    const before = await summary.innerText();
    await slider.focus();
    await page.keyboard.press("End");
    await page.waitForFunction((text) => document.querySelector("#answer-summary").innerText !== text, before);
    await page.getByRole("row", { name: /^email/ }).getByText("removed").first().waitFor();
    await shoot(page, "slider");
    assert.equal(await slider.evaluate((element) => element === document.activeElement), true);
    assert.match(await slider.getAttribute("aria-valuetext"), /UTC$/);
    await page.getByRole("button", { name: "Now", exact: true }).click();
    await page.getByRole("row", { name: /^email/ }).getByText("kept").first().waitFor();
    assert.equal(await page.evaluate(() => window.isSamePage), true);
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("no page has what an accessibility checker finds wrong, in the light, in the dark and on a phone", async () => {
    const expired = await customer("looked-at");
    await customer("looked-at", {
      scopes: ["reports"],
      validUntil: new Date(Date.now() + 20 * 86_400_000).toISOString(),
      graceUntil: new Date(Date.now() + 27 * 86_400_000).toISOString(),
      pausedFrom: new Date(Date.now() - 86_400_000).toISOString(),
    });
    await customer("looked-at", {
      scopes: ["premium"],
      validUntil: null,
      canceledAt: new Date(Date.now() - 5 * 86_400_000).toISOString(),
    });
    const change = (verb) => `/console/change?type=user&id=looked-at&verb=${verb}&on=${expired}`;
    const pages = {
      search: "/console",
      subject: subjectPath("looked-at"),
      past: subjectPath("looked-at", `&at=${new Date(Date.now() - 40 * 86_400_000).toISOString().slice(0, 19)}`),
      nobody: subjectPath("nobody"),
      renew: change("renew"),
      cancel: change("cancel"),
      pause: change("pause"),
      add: "/console/change?type=user&id=looked-at&verb=add&chosen=1&add=insights&open=1",
      catalogue: "/console/catalogue",
      enforce: "/console/enforced?scope=insights",
      import: "/console/import",
      service: "/console/service",
      missing: "/console/nothing",
    };
    for (const [look, options] of Object.entries({
      light: { colorScheme: "light" },
      dark: { colorScheme: "dark" },
      phone: { colorScheme: "light", ...PHONE },
    })) {
      const { page, context, faults } = await open(browser, tollgate.url, options);
      await page.goto(`${tollgate.url}/console/sign-in`);
      await axe(page, `sign-in, ${look}`);
      await signIn(page, tollgate.url);
      for (const [name, path] of Object.entries(pages)) {
        await page.goto(tollgate.url + path);
        await shoot(page, `${look}-${name}`);
        await axe(page, `${name}, ${look}`);
        await fits(page, `${name}, ${look}`);
      }
      assert.deepEqual(faults, []);
      await context.close();
    }
  });

  test("an administrator sees who would lose a scope, enforces it, and takes that back", async () => {
    for (const user of ["one", "two"]) {
      assert.deepEqual(await tollgate.removed(user, "client", ["insights"]), []);
    }
    const { page, context, faults } = await open(browser, tollgate.url);
    await signIn(page, tollgate.url);
    await page.getByRole("link", { name: "Catalogue" }).click();
    await page.getByLabel("Name or description").fill("insi");
    await page.getByText("1 scope found").waitFor();
    await page.getByRole("link", { name: /^Enforce insights/ }).click();
    await page.getByText("subjects would have lost it, in").waitFor();
    await shoot(page, "6-enforce");
    await page.getByRole("button", { name: "Enforce" }).click();
    await page.getByText("is enforced from now on").waitFor();
    assert.deepEqual(await tollgate.removed("one", "client", ["insights"]), ["insights"]);
    await page.getByRole("button", { name: "Undo: stop enforcing it" }).click();
    await page.getByText("is no longer enforced").waitFor();
    assert.deepEqual(await tollgate.removed("one", "client", ["insights"]), []);
    await page.getByRole("link", { name: "Service" }).click();
    await page.getByRole("link", { name: "User one" }).click();
    await page.getByRole("heading", { name: "User one" }).waitFor();
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("a file is tried, and then imported", async () => {
    const { page, context, faults } = await open(browser, tollgate.url);
    await signIn(page, tollgate.url);
    await page.getByRole("link", { name: "Import" }).click();
    const lines = Array.from({ length: 3000 }, (_, index) =>
      JSON.stringify({
        source: "browser",
        externalId: `${index}`,
        subject: { type: "user", id: `imported ${index}` },
        scopes: [index === 1500 ? "no-such-scope" : "email"],
        validUntil: null,
      }),
    );
    const file = { name: "customers.ndjson", mimeType: "text/plain", buffer: Buffer.from(lines.join("\n")) };
    for (const mode of [/try it: check/, /import it$/]) {
      await page.getByLabel("File, 8 MiB at most").setInputFiles(file);
      await page.getByLabel(mode).check();
      await page.getByRole("button", { name: "Upload" }).click();
      await page.getByText("ended: the whole file was read").waitFor({ timeout: 60_000 });
      await page.getByRole("row", { name: /1501/ }).getByText("not in the catalogue").waitFor();
      await axe(page, "an import that has ended");
    }
    await shoot(page, "7-import");
    assert.deepEqual(await tollgate.removed("imported 7", "client", ["email"]), []);
    assert.deepEqual(faults, []);
    await context.close();
  });

  test("hostile names do nothing, and are carried through forms", async () => {
    for (const id of [HOSTILE, `${"\u202e<b>".repeat(170)}`]) {
      const subscription = await customer(id, { validUntil: null });
      const { page, context, faults } = await open(browser, tollgate.url);
      await signIn(page, tollgate.url);
      await page.goto(tollgate.url + subjectPath(id, `&other=${encodeURIComponent(id)}`));
      await shoot(page, id === HOSTILE ? "hostile" : "hostile-long");
      await fits(page, "a hostile name");
      await page.getByRole("link", { name: "Cancel S1" }).click();
      await page.getByText("1 scope would be removed from now on").waitFor();
      await page.getByRole("button", { name: "Cancel", exact: true }).click();
      await page.getByText("is canceled.").waitFor();
      await page.getByRole("button", { name: "Ask" }).click();
      await page.getByRole("row", { name: /^email/ }).getByText("removed").first().waitFor();
      await axe(page, "a hostile name");
      assert.equal(await page.evaluate(() => window.hit), undefined);
      assert.deepEqual(faults, []);
      const { body } = await tollgate.call("GET", `/v1/subscriptions/${subscription}`);
      assert.deepEqual([body.subject.id, body.status], [id, "canceled"]);
      await context.close();
    }
  });

  test("who may only look is offered nothing else", async () => {
    const { body } = await tollgate.call("POST", "/v1/tokens", { name: "looks-only", role: "reader", expiresAt: null });
    const { page, context, faults } = await open(browser, tollgate.url);
    await signIn(page, tollgate.url, body.token);
    await page.goto(tollgate.url + subjectPath("jane"));
    await page.getByRole("heading", { name: "Subscriptions", exact: true }).waitFor();
    assert.equal(await page.locator("a[href*='/console/change'], form[action='/console/change']").count(), 0);
    await tollgate.call("POST", `/v1/tokens/${body.id}/revoke`);
    await page.reload();
    await page.getByRole("heading", { name: "Sign in" }).waitFor();
    assert.deepEqual(faults, []);
    await context.close();
  });
});
