// Makes the console handier; every page works without it.
"use strict";

(() => {
  // A form whose answer is shown in the page: the parts that it names come anew from the page that it would lead to.
  const delay = 250;

  const live = (form) => {
    const ids = form.dataset.live.split(" ");
    let timer = 0;
    let last = null;
    const ask = async () => {
      const query = new URLSearchParams(new FormData(form)).toString();
      const url = `${form.getAttribute("action")}?${query}`;
      last = new AbortController();
      try {
        const response = await fetch(url, { credentials: "same-origin", signal: last.signal });
        if (response.redirected) {
          // The session has ended.
          window.location.assign(url);
          return;
        }
        const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
        const parts = ids.map((id) => [document.getElementById(id), fresh.getElementById(id)]);
        if (!parts.flat().every(Boolean)) {
          // The answer is another page, which says why.
          window.location.assign(url);
          return;
        }
        for (const [old, part] of parts) {
          replace(old, part);
        }
      } catch (error) {
        if (error.name !== "AbortError") {
          form.submit();
        }
      }
    };
    const soon = () => {
      // What the parts show is not what was chosen last: until they come anew, nothing in them can be confirmed.
      for (const id of ids) {
        for (const button of document.getElementById(id)?.querySelectorAll("button") ?? []) {
          button.disabled = true;
        }
      }
      // An answer that is still under way is to the former choice.
      last?.abort();
      window.clearTimeout(timer);
      timer = window.setTimeout(ask, delay);
    };
    form.addEventListener("input", soon);
    form.addEventListener("change", soon);
    return soon;
  };

  // What is said aloud stays the element that it was: only then is its new text said.
  const replace = (old, fresh) => {
    const status = old.querySelector("[role=status]");
    const newStatus = fresh.querySelector("[role=status]");
    if (status && newStatus && status.parentElement === old && newStatus.parentElement === fresh) {
      status.replaceChildren(...newStatus.childNodes);
      newStatus.replaceWith(status);
    }
    old.replaceChildren(...fresh.childNodes);
  };

  // A slider beside the field of an instant.
  const slide = (field, soon) => {
    const seconds = (text) => Date.parse(`${text}Z`) / 1000;
    const [from, until] = [seconds(field.dataset.from), seconds(field.dataset.until)];
    if (!(from < until)) {
      return;
    }
    const spelled = (value) => new Date(value * 1000).toISOString().slice(0, 19);
    const slider = document.createElement("input");
    slider.type = "range";
    slider.id = "slider";
    slider.min = from;
    slider.max = until;
    slider.step = Math.max(60, Math.round((until - from) / 500 / 60) * 60);
    const show = () => {
      slider.setAttribute("aria-valuetext", field.value ? `${field.value.replace("T", " ")} UTC` : "now");
    };
    const follow = () => {
      slider.value = seconds(field.value || field.dataset.now);
      show();
    };
    slider.addEventListener("input", (event) => {
      event.stopPropagation();
      field.value = spelled(Number(slider.value));
      show();
      soon();
    });
    field.addEventListener("input", follow);
    const now = document.createElement("button");
    now.type = "button";
    now.textContent = "Now";
    now.addEventListener("click", () => {
      field.value = "";
      follow();
      soon();
    });
    const label = document.createElement("label");
    label.htmlFor = slider.id;
    label.textContent = "Slide through time";
    const row = document.createElement("div");
    row.className = "slider";
    row.append(label, slider, now);
    field.form.append(row);
    follow();
  };

  for (const form of document.querySelectorAll("form[data-live]")) {
    const soon = live(form);
    const field = form.querySelector("input[data-from]");
    if (field) {
      slide(field, soon);
    }
  }

  // What was just done is read first.
  if (window.location.hash === "#notice") {
    document.getElementById("notice")?.focus();
  }
})();
