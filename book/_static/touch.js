// Brings the charts to touch to life: loads the script that they share, once, and draws each from the data beside it.
(() => {
  const here = document.currentScript.src;
  const figures = () => document.querySelectorAll("figure.touch");

  function load(address) {
    return new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = address;
      script.onload = done;
      script.onerror = failed;
      document.head.append(script);
    });
  }

  function playing(view, figure, controls) {
    const name = figure.dataset.play;
    const slider = controls.querySelector("input[type=range]");
    const button = document.createElement("button");
    let timer = 0;
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
    };
    button.type = "button";
    button.className = "touch-play";
    button.textContent = "Play";
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) >= Number(slider.max)) view.signal(name, Number(slider.min)).run();
      button.textContent = "Pause";
      timer = setInterval(() => {
        const next = view.signal(name) + 1;
        if (next > Number(slider.max)) return stop();
        view.signal(name, next).run();
      }, 450);
    });
    controls.prepend(button);
  }

  async function enliven(figure) {
    const spec = JSON.parse(figure.querySelector("script").textContent);
    const controls = figure.querySelector(".touch-controls");
    const options = { actions: false, renderer: "svg", bind: controls, tooltip: true };
    const picture = figure.querySelector(".touch-live");
    const { view } = await window.vegaEmbed(picture, spec, options);
    // one description instead of hundreds of marks
    picture.setAttribute("role", "img");
    picture.setAttribute("aria-label", figure.querySelector(".touch-still").alt);
    picture.querySelector("svg").setAttribute("aria-hidden", "true");
    if (figure.dataset.play) playing(view, figure, controls);
    figure.classList.add("lives");
    figure.view = view;
  }

  addEventListener("load", async () => {
    if (!figures().length) return;
    await load(new URL("vega/vega.js", here).href);
    await Promise.all([...figures()].map(enliven));
  });
})();
