"""A page in a real browser."""


def open_page(chromium, file, **options):
    """A page from disk with its answers unpacked; `mistakes` are what it must not do: errors, dialogs, requests."""
    page = chromium.new_page(**options)
    page.mistakes = []
    page.on("pageerror", lambda error: page.mistakes.append(str(error)))
    page.on("console", lambda message: page.mistakes.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (page.mistakes.append("a dialog"), dialog.dismiss()))
    page.on("request", lambda r: page.mistakes.append(r.url) if not r.url.startswith("file://") else None)
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready]")
    return page


def unfold(page):
    """Opens the sections that begin folded on a phone."""
    page.evaluate("document.querySelectorAll('h2 button.fold[aria-expanded=false]').forEach((one) => one.click())")
