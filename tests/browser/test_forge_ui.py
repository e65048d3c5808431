"""Forge's own interface in a browser: login, a generation with progress, live preview and result."""

from browsing import Site, Visit, log_in_to_forge


def test_a_wrong_password_opens_nothing_and_the_right_one_the_interface(site: Site, visit: Visit) -> None:
    page = visit.page
    page.goto(site.urls["forge"])
    page.get_by_label("username").fill(site.known.forge.user)
    page.get_by_label("password").fill("wrong password")
    page.get_by_role("button", name="Login").click()
    visit.until("the wrong password is refused", lambda: "400 POST /login" in visit.refused)
    page.wait_for_timeout(500)
    visit.shot("forge-wrong-password")
    unstyled = [line for line in visit.console if "theme.css" in line]
    assert not unstyled, unstyled
    log_in_to_forge(site, visit)
    visit.shot("forge-interface")
    for cookie in page.context.cookies():
        assert cookie["httpOnly"] and cookie["sameSite"] == "Lax", cookie
        assert cookie["secure"] == site.urls["forge"].startswith("https:"), cookie


def test_a_generation_shows_progress_a_preview_and_its_result(site: Site, visit: Visit) -> None:
    page = visit.page
    log_in_to_forge(site, visit)
    visit.console.clear()
    visit.refused.clear()  # the login page asks for scripts that Forge too keeps from strangers
    page.fill("#txt2img_prompt textarea", "a lighthouse at dusk")
    for field, value in (("width", 64), ("height", 64), ("steps", 12)):
        page.fill(f"#txt2img_{field} input[type=number]", str(value))
        page.keyboard.press("Tab")
    page.click("#txt2img_generate")
    visit.until("a live preview", lambda: page.locator(".livePreview img").count(), 300)
    visit.shot("forge-preview")
    result = page.locator("#txt2img_gallery img[src*='/file=']").first
    visit.until("the image", lambda: result.is_visible(), 300)
    page.wait_for_timeout(1000)
    visit.shot("forge-generated")
    assert result.evaluate("image => image.naturalWidth") == 64
    assert "Steps: 12" in page.inner_text("#html_info_txt2img"), "the parameters are not shown"
    assert {"POST /queue/join 200", "GET /queue/data 200", "POST /internal/progress 200"} <= set(visit.requests)
    assert not visit.caused_by_gateway()
    assert not visit.refused, visit.refused
