"""Use the console in Chromium as a person does: browse.py URL KEY DIGITS TABLE LOOKUP FILES.

DIGITS, TABLE and LOOKUP are models with an image, a table and an index as input and two READY
versions each; version 2 of LOOKUP fails on the index 70. FILES is a folder with broken.onnx, which
registration rejects, doubler.onnx, which doubles three numbers, and a model in several files. Runs
in a virtual environment of its own; prints a JSON object of scenario to "" or what went wrong.
"""

import base64
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

URL, KEY, DIGITS, TABLE, LOOKUP, FILES = sys.argv[1:]
API = URL.removesuffix("/console/")
TALKER, VECTORS = "talker", "vectors"  # tiny language models: a decoder, an encoder
PATIENCE_MS = 120_000  # only a broken test waits so long
PAGES = {
    "models": "#/models",
    "versions": f"#/models/{DIGITS}",
    "version": f"#/models/{DIGITS}/versions/2",
    "compare": f"#/models/{DIGITS}/versions/2?compare=1",
    "try": f"#/models/{DIGITS}/try",
    "table": f"#/models/{TABLE}/try",
    "traffic": f"#/models/{DIGITS}/traffic",
    "model usage": f"#/models/{DIGITS}/usage",
    "history": f"#/models/{DIGITS}/history",
    "uploads": "#/uploads",
    "keys": "#/keys",
    "usage": "#/usage",
    "audit": "#/audit",
}
expect.set_options(timeout=PATIENCE_MS)


def open_page(browser: Browser, scheme: str = "light", width: int = 1280) -> Page:
    """Return a signed-in page that fails on errors of scripts and of the policy."""
    context = browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        permissions=["clipboard-read", "clipboard-write"],
    )
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on(
        "console",
        lambda line: page.errors.append(line.text) if "Content Security" in line.text else None,
    )
    page.goto(URL)
    page.get_by_label("Access key").fill(KEY)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_visible()
    return page


def visit(page: Page, name: str) -> None:
    """Open a page by its address and wait until nothing of it is loading."""
    page.goto(URL + PAGES[name])
    expect(page.locator("main h1")).to_be_visible()
    expect(page.get_by_label("Loading")).to_have_count(0)


def sign_in(browser: Browser) -> None:
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(URL)
    page.get_by_label("Access key").fill("mfy_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("mistyped, unknown, revoked or expired")


def first_paint(browser: Browser) -> None:
    """The list needs the page, the script and one answer; usage may come later or never."""
    page = open_page(browser)
    expect(page.get_by_role("link", name=DIGITS)).to_be_visible()
    page.wait_for_load_state("networkidle")
    wanted: list[str] = []
    page.route("**/usage?**", lambda route: route.abort())
    page.on("requestfinished", lambda request: wanted.append(request.url))
    page.reload()
    expect(page.get_by_role("link", name=DIGITS)).to_be_visible()
    paths = [url.removeprefix(URL.removesuffix("console/")).partition("?")[0] for url in wanted]
    assert sorted(paths) == ["api/v1/models", "console/", "console/console.js"], paths


def find_a_model(browser: Browser) -> None:
    page = open_page(browser)
    page.keyboard.press("/")
    page.keyboard.type(TABLE)
    expect(page.get_by_role("link", name=DIGITS)).to_have_count(0)
    page.get_by_role("link", name=TABLE).click()
    expect(page.get_by_role("heading", name=TABLE, level=1)).to_be_visible()
    assert TABLE in page.url


def draw_a_digit(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "try")
    pad = page.get_by_label("Drawing pad")
    box = pad.bounding_box()
    page.get_by_role("button", name="Clear").click()
    page.mouse.move(box["x"] + 140, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 140, box["y"] + 240, steps=12)
    page.mouse.up()
    answer = page.locator("section", has=page.get_by_role("heading", name="Answer"))
    expect(answer).to_contain_text("version 1")
    expect(answer.locator(".bars .fill")).to_have_count(10)
    page.get_by_role("tab", name="Python").click()
    expect(page.get_by_role("tabpanel")).to_contain_text(f'.model("{DIGITS}")')


def run_a_table(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "table")
    for column, value in enumerate(("1", "2", "3")):
        page.get_by_label(f"{column}, row 1").fill(value)
    page.get_by_label("2, row 1").press("Tab")
    page.get_by_role("button", name="Run").click()
    expect(page.locator("section", has_text="Answer").locator("pre").first).to_have_text("2  4  6")
    page.get_by_label("0, row 1").fill("nonsense")
    page.get_by_label("0, row 1").press("Tab")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("x")


def chat_with_a_model(browser: Browser) -> None:
    """The tiny model writes nonsense, so that its words are not looked at."""
    page = open_page(browser)
    page.goto(f"{URL}#/models/{TALKER}/try")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("ol.chat li.user")).to_have_text(["YouWhat is the capital of France?"])
    status = page.locator("main [role=status]")
    expect(status).to_contain_text("tokens per second")
    expect(status).to_contain_text("about $")
    assert page.locator("ol.chat li.assistant p").inner_text().strip()
    page.get_by_label("Message", exact=True).fill("And of Italy?")
    page.get_by_label("Message", exact=True).press("Enter")
    expect(page.locator("ol.chat li.user")).to_have_count(2)
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    violations = [row["id"] for row in Axe().run(page).response["violations"]]
    assert not violations, violations
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("ol.chat li")).to_have_count(0)
    assert page.errors == []


def stop_a_reply(browser: Browser) -> None:
    """The reply never comes, so that there is time to read what Stop does."""
    page = open_page(browser)
    page.goto(f"{URL}#/models/{TALKER}/try")
    page.route("**/v1/chat/completions", lambda _: None)
    page.get_by_role("button", name="Send").click()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_have_accessible_description(
        re.compile("at most 256 tokens, and that is billed")
    )
    stop.click()
    expect(page.locator("main [role=status]")).to_contain_text("Stopped here. The model writes on")
    expect(page.get_by_role("button", name="New chat")).to_be_visible()
    assert page.errors == []


def compare_two_texts(browser: Browser) -> None:
    page = open_page(browser)
    page.goto(f"{URL}#/models/{VECTORS}/try")
    for field in ("First text", "Second text"):
        page.get_by_label(field).fill("A cat sat on the mat.")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("[data-similarity]")).to_have_text("1.0000")
    page.get_by_label("Second text").fill("print(i)")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("[data-similarity]")).not_to_have_text("1.0000")
    assert page.errors == []


def upload_a_broken_file(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "uploads")
    page.get_by_label("Drop a model here").set_input_files(f"{FILES}/broken.onnx")
    page.get_by_label("Name of the model").fill(f"{DIGITS}-broken")
    page.get_by_role("button", name="Upload", exact=True).click()
    form = page.locator("form.drop")
    expect(form).to_contain_text("REJECTED")
    expect(form).to_contain_text("upload it again")
    expect(page.locator("main table")).to_contain_text(f"{DIGITS}-broken")


def drop_a_model_and_try_it(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "uploads")
    content = base64.b64encode(Path(FILES, "doubler.onnx").read_bytes()).decode()
    drop = """(content) => {
      const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], "doubler.onnx"));
      return transfer;
    }"""
    transfer = page.evaluate_handle(drop, content)
    form = page.locator("form.drop")
    form.dispatch_event("dragover", {"dataTransfer": transfer})
    form.dispatch_event("drop", {"dataTransfer": transfer})
    expect(page.get_by_label("Name of the model")).to_have_value("doubler")
    page.get_by_label("Name of the model").fill(f"{TABLE}-dropped")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(form).to_contain_text("Version 1 is ready.")
    form.get_by_role("link", name="Try it").click()
    for column, value in enumerate(("1", "2", "3")):
        page.get_by_label(f"{column}, row 1").fill(value)
    page.get_by_role("button", name="Run").click()
    expect(page.locator("section", has_text="Answer").locator("pre").first).to_have_text("2  4  6")
    assert not page.errors, page.errors


def upload_a_model_in_several_files(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "uploads")
    parts = sorted(str(path) for path in Path(FILES, "parts").iterdir())
    page.get_by_label("Drop a model here").set_input_files(parts)
    page.get_by_label("Name of the model").fill(f"{TABLE}-parts")
    page.get_by_role("button", name="Upload", exact=True).click()
    expect(page.locator("form.drop")).to_contain_text("Version 1 is ready.")


def promote_and_roll_back(browser: Browser) -> None:
    page = open_page(browser)
    page.goto(f"{URL}#/models/{TABLE}/traffic")
    page.get_by_role("button", name="Promote").click()
    expect(page.get_by_role("dialog")).to_contain_text("will be answered by version 2")
    page.get_by_role("dialog").get_by_role("button", name="Promote 2").click()
    expect(page.locator("main")).to_contain_text("version 2: 100 %")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("main")).to_contain_text("version 1: 100 %")


def start_and_stop_a_canary(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "traffic")
    page.get_by_role("button", name="Start a canary").click()
    page.get_by_label("Steps in %").fill("25")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.locator("main")).to_contain_text("version 1: 75 % · version 2: 25 %")
    expect(page.locator("main")).to_contain_text("running")
    page.get_by_role("button", name="Stop and go back").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop and go back").click()
    expect(page.locator("main")).to_contain_text("stopped")
    expect(page.locator("main")).to_contain_text("version 1: 100 %")


def look_up(page: Page, index: int) -> None:
    """Call the model LOOKUP as an application does."""
    tensor = {"name": "i", "datatype": "INT64", "shape": [1], "data": [index]}
    page.request.post(
        f"{API}/v2/models/{LOOKUP}/infer",
        headers={"authorization": f"Bearer {KEY}"},
        data={"inputs": [tensor]},
    )


def watch_a_canary_roll_back(browser: Browser) -> None:
    """The page tells by itself what the judge does while requests come in."""
    page = open_page(browser)
    page.goto(f"{URL}#/models/{LOOKUP}/traffic")
    page.get_by_role("button", name="Start a canary").click()
    page.get_by_label("Steps in %").fill("50")
    page.get_by_label("Minutes a step").fill("0.05")
    page.get_by_label("Requests that each version").fill("20")
    page.get_by_role("dialog").get_by_role("button", name="Start").click()
    expect(page.locator("main")).to_contain_text("version 1: 50 % · version 2: 50 %")
    canary = page.locator("section", has=page.get_by_role("heading", name="Canary of version 2"))
    end = time.monotonic() + PATIENCE_MS / 1000
    while not canary.get_by_text("rolled back", exact=True).count() and time.monotonic() < end:
        for number in range(20):
            look_up(page, 70 if number % 2 else 7)
    expect(canary).to_contain_text("requests failed")
    expect(page.locator("main")).to_contain_text("version 1: 100 %")
    expect(page.get_by_role("cell", name="canary rolled back")).to_be_visible()
    assert not page.errors, page.errors


def read_a_chart(browser: Browser) -> None:
    page = open_page(browser)
    end = time.monotonic() + PATIENCE_MS / 1000
    headers, usage = {"authorization": f"Bearer {KEY}"}, f"{API}/api/v1/models/{LOOKUP}/usage"
    while not page.request.get(usage, headers=headers).json()["total"]["requests"]:
        look_up(page, 7)
        assert time.monotonic() < end
    page.goto(f"{URL}#/models/{LOOKUP}/usage")
    latency = page.locator("figure", has=page.get_by_role("heading", name="Latency"))
    latency.get_by_role("img").focus()
    page.keyboard.press("ArrowLeft")
    expect(latency.locator("figcaption")).to_contain_text("ms")
    expect(page.locator("figure", has_text="Requests")).to_contain_text("in all")


ODD = {  # what registration took before it checked these fields
    "training": {"created": "yesterday", "deep": {"list": [{"a": None}]}},
    "evaluation": {
        "intervals": {},
        "figures": {"learning": "x", "confusion": {}, "residuals": {}},
        "calibration": {"bins": 5},
        "groups": {"worst": 5},
    },
}


def read_an_odd_card(browser: Browser) -> None:
    """A part that cannot be shown says so; the rest of the page stays."""
    page, asked = open_page(browser), f"**/models/{TABLE}/versions/2"

    def answer(route: Route) -> None:
        card = route.fetch().json()
        spec = card["signature"]["inputs"][0]
        route.fulfill(
            json=card | ODD | {"signature": {"inputs": [spec | {"columns": 5}], "outputs": []}}
        )

    page.route(asked, answer)
    page.goto(f"{URL}#/models/{TABLE}/versions/2")
    expect(page.get_by_text("The report of the training cannot be shown")).to_be_visible()
    expect(page.get_by_text("yesterday")).to_be_visible()
    head = page.locator("header", has=page.get_by_role("heading", name="Version 2", level=2))
    for button in ("Reject", "Archive"):
        expect(head.get_by_role("button", name=button, exact=True)).to_be_visible()
    page.goto(f"{URL}#/models/{TABLE}/try?version=2")
    expect(page.get_by_text("This input cannot be shown")).to_be_visible()
    expect(page.get_by_role("button", name="Run")).to_be_visible()
    page.goto(f"{URL}#/models/{TABLE}/versions/1")
    expect(page.get_by_role("heading", name="Version 1", level=2)).to_be_visible()
    expect(page.get_by_text("cannot be shown")).to_have_count(0)
    assert not page.errors, page.errors


def sum_hours(browser: Browser) -> None:
    """The totals of 24 hours are those of the 24 points, of two days in UTC."""
    page = open_page(browser)

    def answer(route: Route) -> None:
        reply, now = route.fetch().json(), datetime.now(UTC)
        hours = [f"{now - timedelta(hours=back):%Y-%m-%dT%H}" for back in range(-1, 40)]
        row = reply["total"] | {"requests": 3, "errors": 0, "refused": 0, "latency_ms": {}}
        rows = [row | {"hour": hour} for hour in hours]
        route.fulfill(json=reply | {"rows": rows, "total": row | {"requests": 123}})

    page.route("**/usage?*by=hour*", answer)
    page.goto(f"{URL}#/models/{TABLE}/usage")
    expect(page.locator("dl.numbers")).to_contain_text("Requests72")
    expect(page.locator("figure", has_text="Requests").first).to_contain_text("72 in all")


def make_and_revoke_a_key(browser: Browser) -> None:
    page = open_page(browser)
    visit(page, "keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_role("textbox", name="Name", exact=True).fill("a colleague")
    page.get_by_label("see models").check()
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    secret = page.locator(".notice", has_text="It is not shown again.")
    text = secret.locator(".mono").inner_text()
    assert text.startswith("mfy_"), text
    page.reload()
    expect(page.get_by_text("a colleague").first).to_be_visible()
    assert text not in page.content()
    colleague = browser.new_context().new_page()
    colleague.goto(URL)
    colleague.get_by_label("Access key").fill(text)
    colleague.get_by_role("button", name="Sign in").click()
    expect(colleague.get_by_role("heading", name="Models", level=1)).to_be_visible()
    colleague.goto(URL + PAGES["keys"])
    expect(colleague.get_by_role("alert")).to_contain_text("It needs the scope admin")
    row = page.locator("tr", has_text="a colleague").first
    expect(row).to_contain_text("none")
    row.get_by_role("button", name="Limits").click()
    page.get_by_label("Longest reply, in tokens").fill("200")
    page.get_by_role("dialog").get_by_role("button", name="Change").click()
    expect(row).to_contain_text("200 tokens a reply")
    row.get_by_role("button", name="Limits").click()
    expect(page.get_by_label("Longest reply, in tokens")).to_have_value("200")
    page.keyboard.press("Escape")
    row.get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(row).to_contain_text("revoked")
    colleague.wait_for_timeout(1500)  # the key is cached for a second
    colleague.goto(URL + PAGES["models"])
    colleague.reload()
    expect(colleague.get_by_label("Access key")).to_be_visible()


def work_by_keyboard(browser: Browser) -> None:
    page = open_page(browser)
    page.keyboard.press("g")
    page.keyboard.press("a")
    expect(page.get_by_role("heading", name="Audit")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Search")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement !== document.body")


def looks(scheme: str, width: int) -> Callable[[Browser], None]:
    """Return a check of every page in one form: accessible, within the width, without errors."""

    def check(browser: Browser) -> None:
        page, axe, wrong = open_page(browser, scheme, width), Axe(), []
        for name in PAGES:
            visit(page, name)
            for violation in axe.run(page).response["violations"]:
                if violation["impact"] in ("serious", "critical"):
                    nodes = [node["html"][:120] for node in violation["nodes"][:2]]
                    wrong.append(f"{name}: {violation['id']} {nodes}")
            overflow = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            if overflow > 0:
                wrong.append(f"{name}: {overflow} px wider than the window")
        assert not wrong + page.errors, wrong + page.errors

    return check


SCENARIOS: dict[str, Callable[[Browser], None]] = {
    "sign_in": sign_in,
    "first_paint": first_paint,
    "find_a_model": find_a_model,
    "draw_a_digit": draw_a_digit,
    "run_a_table": run_a_table,
    "chat_with_a_model": chat_with_a_model,
    "stop_a_reply": stop_a_reply,
    "compare_two_texts": compare_two_texts,
    "upload_a_broken_file": upload_a_broken_file,
    "drop_a_model_and_try_it": drop_a_model_and_try_it,
    "upload_a_model_in_several_files": upload_a_model_in_several_files,
    "promote_and_roll_back": promote_and_roll_back,
    "start_and_stop_a_canary": start_and_stop_a_canary,
    "watch_a_canary_roll_back": watch_a_canary_roll_back,
    "read_a_chart": read_a_chart,
    "read_an_odd_card": read_an_odd_card,
    "sum_hours": sum_hours,
    "make_and_revoke_a_key": make_and_revoke_a_key,
    "work_by_keyboard": work_by_keyboard,
    "light_wide": looks("light", 1280),
    "dark_wide": looks("dark", 1280),
    "light_narrow": looks("light", 360),
    "dark_narrow": looks("dark", 360),
}


def main() -> None:
    results = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for name, scenario in SCENARIOS.items():
            try:
                scenario(browser)
                results[name] = ""
            except Exception:
                results[name] = traceback.format_exc()[-3000:]
        browser.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
