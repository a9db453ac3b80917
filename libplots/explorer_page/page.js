"use strict"
// Two plots of the same points, the example under the cursor, and a table of what is selected.

const explorer = (() => {
  const SCALES = ["linear", "log", "rank"], AXES = ["x1", "y1", "x2", "y2"], PER_PAGE = 25
  const settings = JSON.parse(document.getElementById("settings").textContent)
  const known = new Map(settings.columns.map(column => [column.name, column]))
  const at = id => document.getElementById(id)
  const state = {sort: {by: "example", falling: false}, page: 0, pinned: null, rows: []}
  let data, pairs, points, model

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties)
    made.append(...children.filter(child => child != null))
    return made
  }

  function short(value, digits = 4) {
    if (!Number.isFinite(value)) return "–"
    const size = Math.abs(value)
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e").replace("-", "−")
    return Number(value.toPrecision(digits)).toString().replace("-", "−")
  }

  const exact = value => value.toLocaleString("en")
  const raised = power => String(power).replace("-", "⁻").replace(/\d/g, digit => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])

  function tick(value, scale) {
    if (scale !== "log") return short(value)
    return Number.isInteger(value) && Math.abs(value) > 2 ? `10${raised(value)}` : short(Number((10 ** value).toPrecision(3)))
  }

  const range = count => Array.from({length: count}, (_, i) => i)

  // Percentage of all examples below each one, and half of those with the same value; NaN where there is none.
  const ranked = new Map()
  function ranks(name) {
    if (ranked.has(name)) return ranked.get(name)
    const values = data[name], found = new Float64Array(values.length).fill(NaN)
    const order = Uint32Array.from(range(values.length).filter(i => Number.isFinite(values[i])))
    order.sort((i, j) => values[i] - values[j])
    const total = order.reduce((sum, i) => sum + data.weight[i], 0)
    for (let start = 0, below = 0; start < order.length;) {
      let end = start, same = 0
      for (; end < order.length && values[order[end]] === values[order[start]]; end++) same += data.weight[order[end]]
      for (; start < end; start++) found[order[start]] = 100 * (below + same / 2) / total
      below += same
    }
    ranked.set(name, found)
    return found
  }

  function scaled(name, scale) {
    if (scale === "rank") return ranks(name)
    return Float64Array.from(data[name], value => {
      const finite = Number.isFinite(value)
      if (scale === "log") return finite && value > 0 ? Math.log10(value) : NaN
      return finite ? value : NaN
    })
  }

  function extent(values) {
    let low = Infinity, high = -Infinity
    for (const value of values) {
      if (value < low) low = value
      if (value > high) high = value
    }
    return low <= high ? [low, high] : [0, 1]
  }

  // Where nothing is negative and the largest is far beyond the median, a logarithmic axis shows more.
  function usualScale(name) {
    const values = Array.from(data[name]).filter(Number.isFinite).sort((a, b) => a - b)
    const middle = values[values.length >> 1]
    return values.length && values[0] > 0 && values[values.length - 1] > 50 * middle ? "log" : "linear"
  }

  function place() {
    const chosen = at("class").value, all = chosen === ""
    const columns = {}
    for (const axis of AXES) {
      const values = scaled(at(axis).value, at(`${axis}-scale`).value)
      columns[axis] = all ? values : values.map((value, i) => data.label[i] === Number(chosen) ? value : NaN)
    }
    const plots = [model("plot1"), model("plot2")]
    for (const plot of plots) plot.hold_render = true  // to be drawn once
    columns.colour = colours()
    points.data = columns
    for (const plot of [1, 2]) {
      let hidden = 0
      for (let i = 0; i < columns.colour.length; i++) {
        if (isShown(i) && Number.isNaN(columns[`x${plot}`][i] + columns[`y${plot}`][i])) hidden++
      }
      at(`hidden${plot}`).textContent = hidden ? `Not drawn, without a value here: ${exact(hidden)}.` : ""
    }
    for (const axis of AXES) fit(axis, columns[axis])
    for (const plot of plots) plot.hold_render = false
    ring()
    list()
  }

  const isShown = i => at("class").value === "" || data.label[i] === Number(at("class").value)

  function fit(axis, values) {
    const scale = at(`${axis}-scale`).value, name = at(axis).value
    const [low, high] = scale === "rank" ? [0, 100] : extent(values)
    const margin = (high - low || Math.abs(high) || 1) * 0.04
    const plot = model(`plot${axis[1]}`), shown = plot[`${axis[0]}_range`]
    const bounds = {start: low - margin, end: high + margin}
    shown.setv({...bounds, reset_start: bounds.start, reset_end: bounds.end})
    const drawn = model(axis), column = known.get(name) ?? {}
    drawn.formatter.args = {scale}
    drawn.ticker.min_interval = scale === "log" && high - low > 1.5 ? 1 : 0
    const notes = [scale === "rank" ? "% of examples below" : column.unit, scale === "log" ? "logarithmic" : null]
    const told = notes.filter(Boolean).join(", ")
    const meaning = /^higher means (.*)/.exec(column.direction ?? "")
    drawn.axis_label = (told ? `${name}  (${told})` : name) + (meaning ? `   → ${meaning[1]}` : "")
  }

  function colours() {
    const name = at("colour").value, mapper = model("colours"), legend = at("legend")
    at("colour-scale").hidden = name === "label"
    if (name === "label") {
      const palette = range(settings.num_classes).map(i => settings.classColours[i % settings.classColours.length])
      mapper.setv({palette, low: -0.5, high: settings.num_classes - 0.5})
      const few = palette.slice(0, settings.classColours.length)
      legend.replaceChildren(...few.map((colour, i) => {
        const dot = element("i")
        dot.style.background = colour
        return element("span", {}, dot, className(i))
      }), few.length < palette.length ? "… and again from the first colour" : "")
      return Float64Array.from(data.label)
    }
    const scale = at("colour-scale").value, values = scaled(name, scale)
    const [low, high] = scale === "rank" ? [0, 100] : extent(values)
    mapper.setv({palette: settings.colours, low, high: high > low ? high : low + 1})
    const bar = element("span", {className: "bar"})
    bar.style.background = `linear-gradient(to right, ${settings.colours.filter((_, i) => i % 15 === 0).join(",")})`
    const unit = scale === "rank" ? " %" : ""
    legend.replaceChildren(tick(low, scale) + unit, bar, tick(high, scale) + unit)
    return values
  }

  // Pictures: a canvas with the very pixels, or the text.
  const sheets = new Map()
  async function sheet(part, number) {
    const key = `${part} ${number}`
    if (!sheets.has(key)) {
      const image = element("img", {src: settings.pictures[part].sheets[number]})
      sheets.set(key, image.decode().then(() => image))
    }
    return sheets.get(key)
  }

  function picture(part, position, name) {
    const all = settings.pictures[part]
    if (all.texts) return element("div", {className: "text", textContent: all.texts[position]})
    const canvas = element("canvas", {className: "picture", width: all.width, height: all.height})
    canvas.setAttribute("role", "img")
    canvas.setAttribute("aria-label", name)
    const tile = position % all.tiles, x = tile % all.columns, y = Math.floor(tile / all.columns)
    sheet(part, Math.floor(position / all.tiles)).then(image => {
      canvas.getContext("2d").drawImage(
        image, x * all.pitch_x, y * all.pitch_y, all.width, all.height, 0, 0, all.width, all.height)
      canvas.dataset.drawn = "yes"
    })
    return canvas
  }

  const breakable = name => name.split("_").flatMap((part, i) => i ? ["_", element("wbr"), part] : [part])

  const className = label => settings.class_names[label] ?? String(label)

  const nameOf = row => `example ${data.example[row]}, class ${className(data.label[row])}`

  function show(row) {
    if (state.showing === row) return
    state.showing = row
    ring()
    if (row == null) return
    at("example-title").textContent = `Example ${data.example[row]} · class ${className(data.label[row])}`
    at("example-picture").replaceChildren(picture("train", row, nameOf(row)))
    const lines = settings.columns.map(({name, se, unit}) => {
      const error = se && Number.isFinite(data[se][row]) ? ` ± ${short(data[se][row], 2)}` : ""
      const percent = ranks(name)[row], bar = element("div"), rank = element("td", {className: "rank"})
      bar.style.width = `${percent || 0}%`
      if (!Number.isNaN(percent)) rank.append(element("div", {title: `above ${short(percent)} % of examples`}, bar))
      return element("tr", {}, element("th", {scope: "row", title: unit ?? ""}, ...breakable(name)),
        element("td", {textContent: short(data[name][row]) + error}), rank)
    })
    at("example-scores").replaceChildren(
      element("caption", {textContent: "value ± standard error, rank"}), element("tbody", {}, ...lines))
    influence(row)
  }

  function influence(row) {
    const place = at("example-influence")
    place.replaceChildren()
    if (!pairs.row.length) return
    const found = range(pairs.row.length).slice(...bounds(pairs.row, row))
    place.append(element("h3", {textContent: found.length ? "Test examples it helps most" : "No influence is known"}))
    place.append(element("ul", {}, ...found.map(i => {
      const name = `test ${pairs.test_example[i]}, class ${className(pairs.test_label[i])}`, error = pairs.standard_error[i]
      const value = short(pairs.influence[i]) + (Number.isFinite(error) ? ` ± ${short(error, 2)}` : "")
      return element("li", {}, picture("test", pairs.picture[i], name), element("span", {textContent: `${name}: ${value}`}))
    })))
    if (!found.length || settings.chance == null) return
    place.append(element("p", {textContent: "Where there is no influence at all, the largest of an example is up to " +
      `${short(settings.chance)} in 95 of 100 examples.`}))
  }

  // Where a value begins and ends in an ascending array.
  function bounds(values, wanted) {
    const first = least => {
      let low = 0, high = values.length
      while (low < high) {
        const middle = (low + high) >> 1
        if (values[middle] < least) low = middle + 1
        else high = middle
      }
      return low
    }
    return [first(wanted), first(wanted + 1)]
  }

  // A mark above the plots, which need not be drawn again for it.
  function ring() {
    const row = state.showing
    for (const plot of [1, 2]) {
      const view = Bokeh.index.find_one(model(`plot${plot}`)), mark = at(`ring${plot}`), {frame} = view
      const x = row == null ? NaN : points.data[`x${plot}`][row], y = row == null ? NaN : points.data[`y${plot}`][row]
      const left = frame.x_scale.compute(x), top = frame.y_scale.compute(y)
      mark.hidden = !frame.bbox.contains(left, top)
      if (!mark.hidden) mark.style.translate = `${left + view.el.offsetLeft}px ${top + view.el.offsetTop}px`
    }
  }

  function pin(row) {
    state.pinned = row
    show(row)
    for (const line of at("table").tBodies[0].rows) line.classList.toggle("current", Number(line.dataset.row) === row)
  }

  // Of the points that the cursor touches, the one whose middle is nearest.
  function nearest(indices, {sx, sy}, plot) {
    const {x_scale, y_scale} = Bokeh.index.find_one(model(`plot${plot}`)).frame
    const x = points.data[`x${plot}`], y = points.data[`y${plot}`]
    const far = i => Math.hypot(x_scale.compute(x[i]) - sx, y_scale.compute(y[i]) - sy)
    return indices.reduce((best, i) => best == null || far(i) < far(best) ? i : best, null)
  }

  function list() {
    const selected = points.selected.indices.filter(isShown), {by, falling} = state.sort, values = data[by]
    state.rows = selected.length ? selected : range(values.length).filter(isShown)
    const key = i => Number.isFinite(values[i]) ? values[i] : (falling ? -Infinity : Infinity)
    state.rows = state.rows.sort((i, j) => (falling ? key(j) - key(i) : key(i) - key(j)) || i - j)
    state.selected = selected.length
    const of = `of ${exact(data.label.length)} examples`
    at("table-title").textContent = selected.length ? `${exact(selected.length)} ${of} selected` :
      `Nothing selected; ${exact(state.rows.length)} ${of} listed`
    at("csv").disabled = !selected.length
    fill(0)
  }

  function fill(page) {
    const pages = Math.max(1, Math.ceil(state.rows.length / PER_PAGE))
    state.page = Math.min(Math.max(page, 0), pages - 1)
    at("page").textContent = `page ${exact(state.page + 1)} of ${exact(pages)}`
    at("previous").disabled = state.page === 0
    at("next").disabled = state.page === pages - 1
    const rows = state.rows.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE)
    const texts = settings.pictures.train.texts
    at("table").tBodies[0].replaceChildren(...rows.map(row => {
      const button = element("button", {type: "button", title: `show ${nameOf(row)}`, onclick: () => pin(row)},
        texts ? "show" : picture("train", row, nameOf(row)))
      const line = element("tr", {}, element("td", {}, button),
        texts ? element("td", {className: "text", textContent: texts[row]}) : null,
        element("td", {textContent: data.example[row]}), element("td", {textContent: className(data.label[row])}),
        ...settings.columns.map(({name}) => element("td", {textContent: short(data[name][row])})))
      line.dataset.row = row
      line.classList.toggle("current", row === state.pinned)
      return line
    }))
  }

  function sortBy(name) {
    state.sort = {by: name, falling: state.sort.by === name ? !state.sort.falling : name !== "example"}
    heads()
    list()
  }

  function heads() {
    const head = (name, text) => {
      const {by, falling} = state.sort, mark = by === name ? (falling ? " ▼" : " ▲") : ""
      const made = element("th", {scope: "col"},
        element("button", {type: "button", textContent: text + mark, onclick: () => sortBy(name)}))
      made.setAttribute("aria-sort", by === name ? (falling ? "descending" : "ascending") : "none")
      made.dataset.column = name
      return made
    }
    const focused = document.activeElement?.closest?.("th")?.dataset.column
    at("table").tHead.replaceChildren(element("tr", {}, element("th"), settings.pictures.train.texts ? element("th") : null,
      head("example", "example"), head("label", "class"), ...settings.columns.map(({name}) => head(name, name))))
    if (focused) at("table").tHead.querySelector(`[data-column="${CSS.escape(focused)}"] button`).focus()
  }

  function find() {
    const wanted = at("search").value, row = data.example.indexOf(Number(wanted))
    say("")
    if (wanted === "") return
    if (row < 0) {
      say(data.label.length < settings.total ? `Example ${wanted} is not among those on this page.` :
        `There is no example ${wanted}: ${extent(data.example).join(" … ")}.`)
      return
    }
    if (!isShown(row)) {
      at("class").value = ""
      place()
    }
    pin(row)
  }

  const say = text => { at("message").textContent = text }

  function select() {
    const values = data[at("by").value], sign = at("end").value === "highest" ? -1 : 1
    const there = range(values.length).filter(i => isShown(i) && Number.isFinite(values[i]))
    there.sort((i, j) => sign * (values[i] - values[j]) || i - j)
    points.selected.indices = there.slice(0, Math.max(0, Math.floor(Number(at("count").value))))
  }

  function save() {
    const positions = points.selected.indices.filter(isShown).map(i => data.example[i]).sort((a, b) => a - b)
    const url = URL.createObjectURL(new Blob([`example\n${positions.join("\n")}\n`], {type: "text/csv"}))
    element("a", {href: url, download: `${settings.name}_selection.csv`}).click()
    setTimeout(() => URL.revokeObjectURL(url), 10000)
  }

  function options(select, names, chosen) {
    select.replaceChildren(...names.map(name => typeof name === "string" ? new Option(name, name) : name))
    select.value = chosen
  }

  function controls() {
    const names = settings.columns.map(({name}) => name), errors = settings.columns.map(({se}) => se).filter(Boolean)
    const group = (label, list) => element("optgroup", {label}, ...list.map(name => new Option(name, name)))
    const all = others => [group("Scores", names), group("Standard errors", errors), group("Data", others)]
    for (const axis of AXES) {
      options(at(axis), all(["example", "label"]), settings.view[axis])
      options(at(`${axis}-scale`), SCALES, usualScale(settings.view[axis]))
      at(axis).onchange = () => { at(`${axis}-scale`).value = usualScale(at(axis).value); place() }
      at(`${axis}-scale`).onchange = place
    }
    options(at("colour"), [new Option("class", "label"), ...all(["example"])], settings.view.colour)
    options(at("colour-scale"), SCALES, "rank")
    options(at("class"), [new Option("all", ""), ...range(settings.num_classes).map(i => new Option(className(i), i))], "")
    options(at("by"), names, settings.view.y1)
    for (const id of ["colour", "colour-scale", "class"]) at(id).onchange = place
    for (const form of document.querySelectorAll("form")) form.onsubmit = event => event.preventDefault()
    at("controls").addEventListener("submit", find)
    at("select").onclick = select
    at("clear").onclick = () => { points.selected.indices = [] }
    at("csv").onclick = save
    at("previous").onclick = () => fill(state.page - 1)
    at("next").onclick = () => fill(state.page + 1)
  }

  function definitions() {
    const heads = ["column", "definition", "paper", "direction", "unit", "from", "reliability", "standard error"]
    const line = column => [column.name, column.definition, column.paper, column.direction, column.unit, column.kind,
      column.reliability == null ? "" : short(column.reliability), column.se]
    const missing = Object.entries(settings.missing)
    const cells = (tag, values) => element("tr", {}, ...values.map(value => element(tag, {textContent: value ?? ""})))
    const absent = missing.map(([name, command]) => element("tr", {}, element("td", {textContent: name}),
      element("td", {colSpan: heads.length - 1}, "not in this table; to make it: ", element("code", {textContent: command}))))
    at("definitions").querySelector("table").replaceChildren(
      cells("th", heads), ...settings.columns.map(column => cells("td", line(column))), ...absent)
  }

  async function start() {
    const json = JSON.parse(at("document").textContent)
    const named = new Map(json.roots.map(root => [root.attributes.name, root.id]))
    const roots = {[named.get("plot1")]: at("plot1"), [named.get("plot2")]: at("plot2")}
    await Bokeh.embed.embed_items({page: json}, [{docid: "page", roots, root_ids: Object.keys(roots)}])
    const page = Bokeh.documents[0]
    model = name => page.get_model_by_name(name)
    const get = name => model(name).data
    data = get("scores")
    pairs = get("influence")
    points = model("points")
    at("title").textContent = settings.title
    const few = data.label.length < settings.total
    at("about").textContent = few ? `${exact(data.label.length)} of ${exact(settings.total)} examples: those with the ` +
      "highest and lowest values of every score, and a sample of the others (ranks count for all)" :
      `all ${exact(settings.total)} examples of the table`
    controls()
    definitions()
    heads()
    place()
    const height = points.data.y1
    pin(range(height.length).reduce((best, i) => height[i] > (height[best] ?? -Infinity) ? i : best, 0))
    points.selected.properties.indices.change.connect(list)
    for (const plot of [1, 2]) {
      const drawn = model(`points${plot}`)
      points.inspect.connect(([renderer, {geometry}]) => {
        if (renderer !== drawn) return
        const row = nearest(points.inspected.indices, geometry, plot)
        show(row ?? state.pinned)
      })
      const shown = model(`plot${plot}`)
      shown.on_event("tap", () => { if (state.showing != null) pin(state.showing) })
      shown.on_event("rangesupdate", ring)
      for (const size of ["inner_width", "inner_height"]) shown.properties[size].change.connect(ring)
    }
    let next = 0
    const rankAll = () => {  // before they are asked for, one at a time
      if (next < settings.columns.length) {
        ranks(settings.columns[next++].name)
        setTimeout(rankAll)
      }
    }
    rankAll()
    document.body.dataset.ready = "yes"
  }

  return {start, tick}
})()
explorer.start()
