"""Writes facts.jsonl, the shipped set of real-world facts, from the tables below.

Usage: ``python scripts/build_facts.py [OUT]``. Same tables, same bytes.

How to read the tables:

- ``subject = answer`` is one fact; facts are separated by ``;`` or a new line.
- ``subject = answer / alias / alias`` adds other names of the answer for this fact only;
  ``ALIASES`` does it for every fact with that answer.
- A blank line starts a new pool: wrong answers and neighbors are taken from the same pool first.
- A lower-case ``the`` before a subject or an answer is an article, not a part of the name: the subject of
  ``the Eiffel Tower`` is ``Eiffel Tower``, and before ``the United States`` the cloze ends in "the".
- In ``RELATIONS``, ``people`` gives each answer its surname as an alias, unless ``ALIASES`` knows better.
- ``NOT`` names answers that are too close to being right to serve as wrong ones.

Written by hand for this project, from general knowledge; nothing is copied from a data set.
"""

import functools
import json
import re
import sys
import unicodedata
from pathlib import Path

RELATIONS = {
    "capital_of": {
        "question": "What is the capital of {s}?",
        "cloze": "The capital of {s} is",
        "paraphrases": ["Which city is the capital of {s}?", "{s} has which city as its capital?"],
        "facts": """
            France = Paris; Germany = Berlin; Italy = Rome; Spain = Madrid; Portugal = Lisbon
            the United Kingdom = London; Ireland = Dublin; the Netherlands = Amsterdam; Belgium = Brussels
            Austria = Vienna; Denmark = Copenhagen; Sweden = Stockholm; Norway = Oslo; Finland = Helsinki
            Iceland = Reykjavík; Poland = Warsaw; the Czech Republic = Prague; Slovakia = Bratislava
            Hungary = Budapest; Romania = Bucharest; Bulgaria = Sofia; Greece = Athens; Croatia = Zagreb
            Serbia = Belgrade; Slovenia = Ljubljana; Albania = Tirana; Estonia = Tallinn; Latvia = Riga
            Lithuania = Vilnius; Ukraine = Kyiv / Kiev; Belarus = Minsk; Russia = Moscow; Malta = Valletta

            Japan = Tokyo; China = Beijing / Peking; South Korea = Seoul; North Korea = Pyongyang
            India = New Delhi / Delhi; Pakistan = Islamabad; Bangladesh = Dhaka / Dacca; Nepal = Kathmandu
            Afghanistan = Kabul; Iran = Tehran / Teheran; Iraq = Baghdad; Syria = Damascus; Lebanon = Beirut
            Jordan = Amman; Saudi Arabia = Riyadh; Qatar = Doha; Oman = Muscat
            the United Arab Emirates = Abu Dhabi; Turkey = Ankara; Armenia = Yerevan; Azerbaijan = Baku
            Uzbekistan = Tashkent; Mongolia = Ulaanbaatar / Ulan Bator; Thailand = Bangkok; Vietnam = Hanoi
            Cambodia = Phnom Penh; Laos = Vientiane; Malaysia = Kuala Lumpur; the Philippines = Manila

            Egypt = Cairo; Libya = Tripoli; Morocco = Rabat; Kenya = Nairobi; Ethiopia = Addis Ababa
            Ghana = Accra; Nigeria = Abuja; Senegal = Dakar; Mali = Bamako; Uganda = Kampala
            Rwanda = Kigali; Somalia = Mogadishu; Zimbabwe = Harare; Zambia = Lusaka; Angola = Luanda
            Namibia = Windhoek; Botswana = Gaborone; Mozambique = Maputo; Madagascar = Antananarivo

            the United States = Washington, D.C. / Washington / Washington DC / Washington D.C.
            Canada = Ottawa; Cuba = Havana; Jamaica = Kingston; Haiti = Port-au-Prince
            the Dominican Republic = Santo Domingo; the Bahamas = Nassau; Costa Rica = San José
            Nicaragua = Managua; Honduras = Tegucigalpa; Argentina = Buenos Aires; Brazil = Brasília
            Chile = Santiago; Peru = Lima; Colombia = Bogotá; Venezuela = Caracas; Ecuador = Quito
            Uruguay = Montevideo; Paraguay = Asunción

            Australia = Canberra; New Zealand = Wellington; Fiji = Suva; Papua New Guinea = Port Moresby
        """,
    },
    "state_capital_of": {
        "question": "What is the state capital of {s}?",
        "cloze": "The state capital of {s} is",
        "paraphrases": [
            "Which city is the capital of the U.S. state of {s}?",
            "Where does the state government of {s} have its seat?",
        ],
        "facts": """
            Texas = Austin; California = Sacramento; Arizona = Phoenix; Nevada = Carson City
            Colorado = Denver; New Mexico = Santa Fe; Utah = Salt Lake City; Oregon = Salem
            Hawaii = Honolulu; Alaska = Juneau; Idaho = Boise; Montana = Helena; Wyoming = Cheyenne

            New York = Albany; Massachusetts = Boston; Pennsylvania = Harrisburg; New Jersey = Trenton
            Connecticut = Hartford; Maine = Augusta; Rhode Island = Providence; Maryland = Annapolis
            Delaware = Dover; Vermont = Montpelier; New Hampshire = Concord

            Florida = Tallahassee; Alabama = Montgomery; Mississippi = Jackson; Louisiana = Baton Rouge
            Tennessee = Nashville; Kentucky = Frankfort; Virginia = Richmond; North Carolina = Raleigh

            Illinois = Springfield; Ohio = Columbus; Michigan = Lansing; Wisconsin = Madison
            Minnesota = Saint Paul / St. Paul; Iowa = Des Moines; Missouri = Jefferson City
            Kansas = Topeka; Nebraska = Lincoln
        """,
    },
    "country_of_city": {
        "question": "Which country is the city of {s} in?",
        "cloze": "{s} is a city in the country of",
        "paraphrases": [
            "In what country would you find {s}?",
            "{s} is a city in which country?",
        ],
        "facts": """
            Barcelona = Spain; Munich = Germany; Milan = Italy; Lyon = France; Liverpool = England
            Rotterdam = the Netherlands; Antwerp = Belgium; Geneva = Switzerland; Salzburg = Austria
            Krakow = Poland; Gothenburg = Sweden; Bergen = Norway; Porto = Portugal; Thessaloniki = Greece
            Saint Petersburg = Russia

            Osaka = Japan; Shanghai = China; Mumbai = India; Karachi = Pakistan; Busan = South Korea
            Dubai = the United Arab Emirates; Istanbul = Turkey; Ho Chi Minh City = Vietnam
            Mecca = Saudi Arabia; Mandalay = Myanmar / Burma

            Lagos = Nigeria; Johannesburg = South Africa; Marrakesh = Morocco; Mombasa = Kenya; Luxor = Egypt
            Timbuktu = Mali

            Chicago = the United States; Toronto = Canada; Acapulco = Mexico; Rio de Janeiro = Brazil
            Medellín = Colombia; Guayaquil = Ecuador; Melbourne = Australia; Auckland = New Zealand
        """,
    },
    "landmark_located_in": {
        "question": "Which country is {s} in?",
        "cloze": "{s} is located in the country of",
        "paraphrases": ["In what country is {s} located?", "To see {s}, which country do you have to visit?"],
        "facts": """
            the Eiffel Tower = France; the Colosseum = Italy; Stonehenge = England; the Acropolis = Greece
            the Brandenburg Gate = Germany; the Sagrada Família = Spain; the Kremlin = Russia
            the Leaning Tower of Pisa = Italy; Neuschwanstein Castle = Germany; the Alhambra = Spain
            the Louvre = France; Big Ben = England; the Little Mermaid statue = Denmark
            the Atomium = Belgium; Chillon Castle = Switzerland; Schönbrunn Palace = Austria

            the Taj Mahal = India; the Forbidden City = China; Mount Fuji = Japan; Angkor Wat = Cambodia
            the ancient city of Petra = Jordan; Hagia Sophia = Turkey; the Terracotta Army = China
            the Burj Khalifa = the United Arab Emirates; Borobudur = Indonesia; Persepolis = Iran

            the Great Pyramid of Giza = Egypt; Mount Kilimanjaro = Tanzania; Table Mountain = South Africa
            the Statue of Liberty = the United States; Machu Picchu = Peru
            the statue of Christ the Redeemer = Brazil; Chichen Itza = Mexico; the CN Tower = Canada
            Mount Rushmore = the United States; the Sydney Opera House = Australia; Uluru = Australia
            the Golden Gate Bridge = the United States
        """,
    },
    "continent_of": {
        "question": "Which continent is {s} in?",
        "cloze": "{s} is a country on the continent of",
        "paraphrases": ["What continent does {s} belong to?", "On which continent would you find {s}?"],
        "facts": """
            Kenya = Africa; Japan = Asia; France = Europe; Brazil = South America; Canada = North America
            Nigeria = Africa; India = Asia; Poland = Europe; Peru = South America; Mexico = North America
            Ghana = Africa; China = Asia; Sweden = Europe; Chile = South America
            the United States = North America; Ethiopia = Africa; Thailand = Asia; Italy = Europe
            Argentina = South America; Cuba = North America; Zimbabwe = Africa; Vietnam = Asia
            Germany = Europe; Bolivia = South America; Morocco = Africa; Nepal = Asia; Ireland = Europe
            Uruguay = South America; Tanzania = Africa; Pakistan = Asia; Belgium = Europe
            Ecuador = South America
        """,
    },
    "language_of": {
        "question": "What is the main language spoken in {s}?",
        "cloze": "The main language spoken in {s} is",
        "paraphrases": [
            "Which language do most people in {s} speak?",
            "If you travel to {s}, which language will you hear most?",
        ],
        "facts": """
            France = French; Italy = Italian; Spain = Spanish; Portugal = Portuguese; Austria = German
            the Netherlands = Dutch; Denmark = Danish; Sweden = Swedish; Norway = Norwegian
            Finland = Finnish; Poland = Polish; Hungary = Hungarian; Greece = Greek
            the United Kingdom = English

            Egypt = Arabic; Iran = Persian / Farsi; Israel = Hebrew; Turkey = Turkish
            China = Chinese / Mandarin / Mandarin Chinese; Bangladesh = Bengali; Cambodia = Khmer
            Saudi Arabia = Arabic; Jordan = Arabic

            Brazil = Portuguese; Mexico = Spanish; the United States = English; Argentina = Spanish
            Cuba = Spanish; Australia = English; Colombia = Spanish; Chile = Spanish
        """,
    },
    "currency_of": {
        "question": "What is the currency of {s}?",
        "cloze": "The currency of {s} is the",
        "paraphrases": ["Which currency is used in {s}?", "What money do people in {s} pay with?"],
        "facts": """
            the United Kingdom = pound / pound sterling / British pound; Germany = euro
            Russia = ruble / rouble / Russian ruble; Switzerland = franc / Swiss franc; France = euro
            Poland = zloty / złoty / Polish zloty; Hungary = forint / Hungarian forint; Italy = euro
            Sweden = krona / Swedish krona; Norway = krone / Norwegian krone; Denmark = krone / Danish krone
            Ukraine = hryvnia / Ukrainian hryvnia; Spain = euro

            Japan = yen / Japanese yen; China = yuan / renminbi / Chinese yuan
            India = rupee / Indian rupee; South Korea = won / Korean won / South Korean won
            Thailand = baht / Thai baht; Vietnam = dong / Vietnamese dong
            Israel = shekel / new shekel / Israeli shekel; Turkey = lira / Turkish lira
            Saudi Arabia = riyal / Saudi riyal; Malaysia = ringgit / Malaysian ringgit
            Indonesia = rupiah / Indonesian rupiah; Bangladesh = taka / Bangladeshi taka
            Iraq = dinar / Iraqi dinar

            the United States = dollar / US dollar / U.S. dollar; Mexico = peso / Mexican peso
            Brazil = real / Brazilian real; Canada = dollar / Canadian dollar; Peru = sol / Peruvian sol
            South Africa = rand / South African rand; Nigeria = naira / Nigerian naira
            Kenya = shilling / Kenyan shilling; Ghana = cedi / Ghanaian cedi
            Australia = dollar / Australian dollar; Argentina = peso / Argentine peso
        """,
    },
    "author_of": {
        "people": True,
        "question": "Who wrote {s}?",
        "cloze": "The author of {s} is",
        "paraphrases": ["Which writer is the author of {s}?", "{s} was written by whom?"],
        "facts": """
            Hamlet = William Shakespeare; Pride and Prejudice = Jane Austen; Oliver Twist = Charles Dickens
            Frankenstein = Mary Shelley; Dracula = Bram Stoker; Macbeth = William Shakespeare
            Animal Farm = George Orwell; Brave New World = Aldous Huxley; Jane Eyre = Charlotte Brontë
            Wuthering Heights = Emily Brontë; The Hobbit = J.R.R. Tolkien; David Copperfield = Charles Dickens
            The Chronicles of Narnia = C.S. Lewis; Alice's Adventures in Wonderland = Lewis Carroll
            Treasure Island = Robert Louis Stevenson; The Jungle Book = Rudyard Kipling
            Romeo and Juliet = William Shakespeare; Peter Pan = J.M. Barrie; Winnie-the-Pooh = A.A. Milne
            The Picture of Dorian Gray = Oscar Wilde; The Time Machine = H.G. Wells
            Robinson Crusoe = Daniel Defoe; Gulliver's Travels = Jonathan Swift; Emma = Jane Austen
            Heart of Darkness = Joseph Conrad; Murder on the Orient Express = Agatha Christie
            The Hound of the Baskervilles = Arthur Conan Doyle; Paradise Lost = John Milton
            The Canterbury Tales = Geoffrey Chaucer; Lord of the Flies = William Golding
            Harry Potter and the Chamber of Secrets = J.K. Rowling; Mrs Dalloway = Virginia Woolf

            The Great Gatsby = F. Scott Fitzgerald; To Kill a Mockingbird = Harper Lee
            Moby-Dick = Herman Melville; The Catcher in the Rye = J.D. Salinger
            The Adventures of Tom Sawyer = Mark Twain; The Old Man and the Sea = Ernest Hemingway
            The Grapes of Wrath = John Steinbeck; The Scarlet Letter = Nathaniel Hawthorne
            Little Women = Louisa May Alcott; Uncle Tom's Cabin = Harriet Beecher Stowe
            The Raven = Edgar Allan Poe; Gone with the Wind = Margaret Mitchell; Catch-22 = Joseph Heller
            Fahrenheit 451 = Ray Bradbury; The Call of the Wild = Jack London; Beloved = Toni Morrison
            Walden = Henry David Thoreau; The Cat in the Hat = Dr. Seuss; Charlotte's Web = E.B. White
            On the Road = Jack Kerouac; Slaughterhouse-Five = Kurt Vonnegut

            War and Peace = Leo Tolstoy; Crime and Punishment = Fyodor Dostoevsky
            Don Quixote = Miguel de Cervantes; Les Misérables = Victor Hugo; Anna Karenina = Leo Tolstoy
            The Three Musketeers = Alexandre Dumas; Madame Bovary = Gustave Flaubert; Candide = Voltaire
            The Little Prince = Antoine de Saint-Exupéry; the Divine Comedy = Dante Alighieri
            The Metamorphosis = Franz Kafka; One Hundred Years of Solitude = Gabriel García Márquez
            Around the World in Eighty Days = Jules Verne; Things Fall Apart = Chinua Achebe
            The Brothers Karamazov = Fyodor Dostoevsky; The Ugly Duckling = Hans Christian Andersen
            Doctor Zhivago = Boris Pasternak; The Name of the Rose = Umberto Eco
        """,
    },
    "painter_of": {
        "people": True,
        "question": "Who painted {s}?",
        "cloze": "{s} was painted by",
        "paraphrases": ["Which artist is the painter of {s}?", "{s} is a painting by whom?"],
        "facts": """
            the Mona Lisa = Leonardo da Vinci; The Starry Night = Vincent van Gogh; The Scream = Edvard Munch
            Guernica = Pablo Picasso; The Persistence of Memory = Salvador Dalí
            Girl with a Pearl Earring = Johannes Vermeer; The Birth of Venus = Sandro Botticelli
            The Night Watch = Rembrandt; The Creation of Adam = Michelangelo; American Gothic = Grant Wood
            Impression, Sunrise = Claude Monet; The School of Athens = Raphael
            Las Meninas = Diego Velázquez; Nighthawks = Edward Hopper
            Liberty Leading the People = Eugène Delacroix; The Potato Eaters = Vincent van Gogh
            The Garden of Earthly Delights = Hieronymus Bosch; The Fighting Temeraire = J.M.W. Turner
            Campbell's Soup Cans = Andy Warhol; The Third of May 1808 = Francisco Goya
            Christina's World = Andrew Wyeth; Lady with an Ermine = Leonardo da Vinci
            The Son of Man = René Magritte; The Arnolfini Portrait = Jan van Eyck
            Luncheon of the Boating Party = Pierre-Auguste Renoir; The Hay Wain = John Constable
            A Sunday Afternoon on the Island of La Grande Jatte = Georges Seurat
            The Raft of the Medusa = Théodore Géricault; Les Demoiselles d'Avignon = Pablo Picasso
        """,
    },
    "composer_of": {
        "people": True,
        "question": "Who composed {s}?",
        "cloze": "The composer of {s} is",
        "paraphrases": ["Which composer wrote {s}?", "Who was the composer behind {s}?"],
        "facts": """
            The Four Seasons = Antonio Vivaldi; The Magic Flute = Wolfgang Amadeus Mozart
            the Moonlight Sonata = Ludwig van Beethoven; Swan Lake = Pyotr Ilyich Tchaikovsky
            the oratorio Messiah = George Frideric Handel; Carmen = Georges Bizet; Aida = Giuseppe Verdi
            Madama Butterfly = Giacomo Puccini; The Barber of Seville = Gioachino Rossini
            the Brandenburg Concertos = Johann Sebastian Bach; The Planets = Gustav Holst
            Boléro = Maurice Ravel; Clair de Lune = Claude Debussy; The Rite of Spring = Igor Stravinsky
            Peter and the Wolf = Sergei Prokofiev; Rhapsody in Blue = George Gershwin
            The Blue Danube = Johann Strauss II; Finlandia = Jean Sibelius
            the New World Symphony = Antonín Dvořák; Pictures at an Exhibition = Modest Mussorgsky
            The Carnival of the Animals = Camille Saint-Saëns; the Ride of the Valkyries = Richard Wagner
            Scheherazade = Nikolai Rimsky-Korsakov; the Hungarian Rhapsodies = Franz Liszt
            The Nutcracker = Pyotr Ilyich Tchaikovsky; Für Elise = Ludwig van Beethoven
            The Marriage of Figaro = Wolfgang Amadeus Mozart; Water Music = George Frideric Handel
            La Traviata = Giuseppe Verdi; Tosca = Giacomo Puccini; Canon in D = Johann Pachelbel
            the Peer Gynt suites = Edvard Grieg; Appalachian Spring = Aaron Copland
        """,
    },
    "director_of": {
        "people": True,
        "question": "Who directed the film {s}?",
        "cloze": "The director of the film {s} is",
        "paraphrases": ["Which filmmaker made the movie {s}?", "{s} is a film directed by whom?"],
        "facts": """
            Jaws = Steven Spielberg; The Godfather = Francis Ford Coppola; Pulp Fiction = Quentin Tarantino
            Vertigo = Alfred Hitchcock; The Shining = Stanley Kubrick; Avatar = James Cameron
            Inception = Christopher Nolan; Taxi Driver = Martin Scorsese; Citizen Kane = Orson Welles
            Seven Samurai = Akira Kurosawa; Spirited Away = Hayao Miyazaki; Alien = Ridley Scott
            Forrest Gump = Robert Zemeckis; Annie Hall = Woody Allen; Edward Scissorhands = Tim Burton
            Modern Times = Charlie Chaplin; La Dolce Vita = Federico Fellini; Fight Club = David Fincher
            Unforgiven = Clint Eastwood; Metropolis = Fritz Lang; The Seventh Seal = Ingmar Bergman
            Jurassic Park = Steven Spielberg; Apocalypse Now = Francis Ford Coppola
            Kill Bill = Quentin Tarantino; Rear Window = Alfred Hitchcock
            A Clockwork Orange = Stanley Kubrick; Titanic = James Cameron
            The Dark Knight = Christopher Nolan; Goodfellas = Martin Scorsese; Gladiator = Ridley Scott
            Back to the Future = Robert Zemeckis; Casablanca = Michael Curtiz
            It's a Wonderful Life = Frank Capra; Lawrence of Arabia = David Lean
            Schindler's List = Steven Spielberg; Some Like It Hot = Billy Wilder
            The Fellowship of the Ring = Peter Jackson; Life of Pi = Ang Lee; Toy Story = John Lasseter
        """,
    },
    "inventor_of": {
        "people": True,
        "question": "Who invented {s}?",
        "cloze": "The person who invented {s} was",
        "paraphrases": [
            "Who is credited with the invention of {s}?",
            "Which person first came up with {s}?",
        ],
        "facts": """
            dynamite = Alfred Nobel; the phonograph = Thomas Edison; the cotton gin = Eli Whitney
            the lightning rod = Benjamin Franklin; the printing press = Johannes Gutenberg
            the smallpox vaccine = Edward Jenner; the stethoscope = René Laennec
            the pendulum clock = Christiaan Huygens; the Analytical Engine = Charles Babbage
            Kevlar = Stephanie Kwolek; basketball = James Naismith; Esperanto = L.L. Zamenhof
            logarithms = John Napier; the AK-47 rifle = Mikhail Kalashnikov
            the first electric battery = Alessandro Volta; the cyclotron = Ernest Lawrence
            the spinning jenny = James Hargreaves; Bakelite = Leo Baekeland; the Segway = Dean Kamen
            the hovercraft = Christopher Cockerell; the railway air brake = George Westinghouse

            the World Wide Web = Tim Berners-Lee; the Linux kernel = Linus Torvalds
            the Python programming language = Guido van Rossum
            the Java programming language = James Gosling; the Perl programming language = Larry Wall
            the C++ programming language = Bjarne Stroustrup; JavaScript = Brendan Eich
            the C programming language = Dennis Ritchie; the video game Tetris = Alexey Pajitnov
        """,
    },
    "discoverer_of": {
        "people": True,
        "question": "Who discovered {s}?",
        "cloze": "The person who discovered {s} was",
        "paraphrases": [
            "Who is credited with the discovery of {s}?",
            "Which person was the first to discover {s}?",
        ],
        "facts": """
            penicillin = Alexander Fleming; X-rays = Wilhelm Röntgen; radium = Marie Curie
            the electron = J.J. Thomson; the neutron = James Chadwick; radioactivity = Henri Becquerel
            the atomic nucleus = Ernest Rutherford; radio waves = Heinrich Hertz
            cosmic rays = Victor Hess; superconductivity = Heike Kamerlingh Onnes
            the positron = Carl Anderson; deuterium = Harold Urey; polonium = Marie Curie
            hydrogen = Henry Cavendish; sodium = Humphry Davy; phosphorus = Hennig Brand
            the ABO blood groups = Karl Landsteiner; the tuberculosis bacterium = Robert Koch

            the law of universal gravitation = Isaac Newton; the laws of planetary motion = Johannes Kepler
            the laws of inheritance = Gregor Mendel; the principle of buoyancy = Archimedes
            the four largest moons of Jupiter = Galileo Galilei; the planet Uranus = William Herschel
            Pluto = Clyde Tombaugh; Saturn's moon Titan = Christiaan Huygens
            the dwarf planet Ceres = Giuseppe Piazzi; Neptune's moon Triton = William Lassell
            the Martian moon Phobos = Asaph Hall; the tomb of Tutankhamun = Howard Carter
        """,
    },
    "element_symbol": {
        "question": "What is the chemical symbol for {s}?",
        "cloze": "The chemical symbol for {s} is",
        "paraphrases": [
            "Which symbol stands for {s} in chemistry?",
            "How is {s} abbreviated in the periodic table?",
        ],
        "facts": """
            gold = Au; silver = Ag; iron = Fe; copper = Cu; lead = Pb; tin = Sn; mercury = Hg; zinc = Zn
            nickel = Ni; platinum = Pt; aluminum = Al; titanium = Ti; chromium = Cr; cobalt = Co
            manganese = Mn; tungsten = W; uranium = U; plutonium = Pu; radium = Ra

            hydrogen = H; helium = He; carbon = C; nitrogen = N; oxygen = O; fluorine = F; neon = Ne
            sodium = Na; magnesium = Mg; silicon = Si; phosphorus = P; sulfur = S; chlorine = Cl
            argon = Ar; potassium = K; calcium = Ca; iodine = I; bromine = Br; lithium = Li
        """,
    },
    "chemical_formula": {
        "question": "What is the chemical formula of {s}?",
        "cloze": "The chemical formula of {s} is",
        "paraphrases": [
            "Which formula do chemists use for {s}?",
            "How is {s} written in chemical notation?",
        ],
        "facts": """
            water = H2O / H₂O; carbon dioxide = CO2 / CO₂; carbon monoxide = CO; ozone = O3 / O₃
            hydrogen peroxide = H2O2 / H₂O₂; ammonia = NH3 / NH₃; nitrous oxide = N2O / N₂O
            sulfur dioxide = SO2 / SO₂; hydrogen sulfide = H2S / H₂S; silicon dioxide = SiO2 / SiO₂

            methane = CH4 / CH₄; propane = C3H8 / C₃H₈; butane = C4H10 / C₄H₁₀; benzene = C6H6 / C₆H₆
            glucose = C6H12O6 / C₆H₁₂O₆; ethanol = C2H5OH / C₂H₅OH / C2H6O / C₂H₆O / CH3CH2OH
            acetic acid = CH3COOH / CH₃COOH / C2H4O2 / C₂H₄O₂; ethylene = C2H4 / C₂H₄

            table salt = NaCl; hydrochloric acid = HCl; sulfuric acid = H2SO4 / H₂SO₄
            nitric acid = HNO3 / HNO₃; sodium hydroxide = NaOH; calcium carbonate = CaCO3 / CaCO₃
            baking soda = NaHCO3 / NaHCO₃; potassium chloride = KCl; silver nitrate = AgNO3 / AgNO₃
        """,
    },
    "sport_of": {
        "question": "Which sport is {s} famous for?",
        "cloze": "The sport that made {s} famous is",
        "paraphrases": [
            "In what sport did {s} become a star?",
            "{s} is a great name in which sport?",
        ],
        "facts": """
            Michael Jordan = basketball; Lionel Messi = soccer; Serena Williams = tennis; Tiger Woods = golf
            Muhammad Ali = boxing; Babe Ruth = baseball; Wayne Gretzky = ice hockey
            Tom Brady = American football; Michael Phelps = swimming; Usain Bolt = track and field
            Sachin Tendulkar = cricket; Simone Biles = gymnastics; Tony Hawk = skateboarding
            Michael Schumacher = Formula One; Lance Armstrong = cycling

            LeBron James = basketball; Pelé = soccer; Roger Federer = tennis; Jack Nicklaus = golf
            Mike Tyson = boxing; Derek Jeter = baseball; Sidney Crosby = ice hockey
            Peyton Manning = American football; Katie Ledecky = swimming; Carl Lewis = track and field
            Virat Kohli = cricket; Nadia Comăneci = gymnastics; Ayrton Senna = Formula One
            Eddy Merckx = cycling

            Kobe Bryant = basketball; Cristiano Ronaldo = soccer; Rafael Nadal = tennis
            Arnold Palmer = golf; Joe Frazier = boxing; Hank Aaron = baseball; Bobby Orr = ice hockey
            Joe Montana = American football; Mark Spitz = swimming; Diego Maradona = soccer
        """,
    },
    "young_of": {
        "question": "What is a baby {s} called?",
        "cloze": "A baby {s} is called a",
        "paraphrases": ["What is the word for a young {s}?", "Which name do people give to a baby {s}?"],
        "facts": """
            cow = calf; horse = foal; sheep = lamb; goat = kid; deer = fawn; elephant = calf; zebra = foal
            llama = cria; giraffe = calf; dog = puppy / pup; cat = kitten; lion = cub; wolf = pup / whelp
            bear = cub; kangaroo = joey; seal = pup; tiger = cub; koala = joey; hare = leveret

            goose = gosling; frog = tadpole / polliwog; swan = cygnet; butterfly = caterpillar / larva
            penguin = chick; whale = calf; pigeon = squab
        """,
    },
    "roman_name_of": {
        "question": "What is the Roman name of the Greek deity {s}?",
        "cloze": "The Roman name of the Greek deity {s} is",
        "paraphrases": [
            "What did the ancient Romans call the Greek deity {s}?",
            "Which Roman god or goddess is the counterpart of {s}?",
        ],
        "facts": """
            Zeus = Jupiter / Jove; Hera = Juno; Poseidon = Neptune; Ares = Mars; Aphrodite = Venus
            Hermes = Mercury; Athena = Minerva; Artemis = Diana; Hephaestus = Vulcan; Dionysus = Bacchus
            Demeter = Ceres; Hades = Pluto / Dis Pater; Eros = Cupid / Amor; Hestia = Vesta
            Cronus = Saturn; Nike = Victoria; Helios = Sol; Selene = Luna; Eos = Aurora
            Persephone = Proserpina / Proserpine
        """,
    },
}

ALIASES = {
    "United States": ["US", "USA", "U.S.", "United States of America", "America"],
    "United Arab Emirates": ["UAE", "Emirates"],
    "England": ["United Kingdom", "UK", "Britain", "Great Britain"],
    "Netherlands": ["Holland"],
    "South Korea": ["Korea", "Republic of Korea"],
    "Turkey": ["Türkiye"],
    "Russia": ["Russian Federation"],
    "China": ["People's Republic of China"],
    "soccer": ["football", "association football"],
    "American football": ["football", "gridiron football"],
    "ice hockey": ["hockey"],
    "track and field": ["athletics", "track", "sprinting", "running"],
    "Formula One": ["Formula 1", "F1", "motor racing", "auto racing", "car racing", "racing"],
    "cycling": ["road cycling", "bicycle racing", "bike racing"],
    "Charlotte Brontë": [],  # the surname alone would also name her sister
    "Emily Brontë": [],
    "J.R.R. Tolkien": ["J. R. R. Tolkien", "Tolkien"],
    "C.S. Lewis": ["C. S. Lewis", "Clive Staples Lewis"],  # "Lewis" would also match Lewis Carroll
    "J.M. Barrie": ["J. M. Barrie", "James Barrie", "Barrie"],
    "A.A. Milne": ["A. A. Milne", "Milne"],
    "H.G. Wells": ["H. G. Wells", "Wells"],
    "J.K. Rowling": ["J. K. Rowling", "Rowling"],
    "J.D. Salinger": ["J. D. Salinger", "Salinger"],
    "E.B. White": ["E. B. White", "White"],
    "L.L. Zamenhof": ["L. L. Zamenhof", "Ludwik Zamenhof", "Zamenhof"],
    "J.M.W. Turner": ["J. M. W. Turner", "William Turner", "Turner"],
    "J.J. Thomson": ["J. J. Thomson", "Joseph John Thomson", "Thomson"],
    "Mark Twain": ["Twain", "Samuel Clemens"],
    "Dr. Seuss": ["Seuss", "Theodor Geisel"],
    "Arthur Conan Doyle": ["Conan Doyle", "Doyle"],
    "Fyodor Dostoevsky": ["Dostoevsky", "Fyodor Dostoyevsky", "Dostoyevsky"],
    "Gabriel García Márquez": ["García Márquez", "Márquez"],
    "Dante Alighieri": ["Dante"],
    "Leonardo da Vinci": ["Leonardo", "da Vinci"],
    "Vincent van Gogh": ["van Gogh"],
    "Jan van Eyck": ["van Eyck"],
    "Rembrandt": ["Rembrandt van Rijn"],
    "Michelangelo": ["Michelangelo Buonarroti"],
    "Raphael": ["Raffaello Sanzio"],
    "Pyotr Ilyich Tchaikovsky": ["Tchaikovsky", "Pyotr Tchaikovsky", "Peter Tchaikovsky"],
    "Wolfgang Amadeus Mozart": ["Mozart"],
    "Johann Sebastian Bach": ["Bach", "J.S. Bach", "J. S. Bach"],
    "George Frideric Handel": ["Handel", "George Frederick Handel", "Händel"],
    "Johann Strauss II": ["Johann Strauss", "Strauss"],
    "Guido van Rossum": ["van Rossum"],
    "Alexey Pajitnov": ["Pajitnov", "Alexei Pajitnov"],
    "René Laennec": ["Laennec", "René Laënnec", "Laënnec"],
    "Wilhelm Röntgen": ["Röntgen", "Roentgen", "Wilhelm Conrad Röntgen"],
    "Marie Curie": ["Curie", "Pierre Curie", "Marie and Pierre Curie", "Pierre and Marie Curie"],
    "Heike Kamerlingh Onnes": ["Kamerlingh Onnes", "Onnes"],
    "Galileo Galilei": ["Galileo"],
}

NOT = {
    "language_of/united_states": ["Spanish"],
    "language_of/israel": ["Arabic"],
    "language_of/finland": ["Swedish"],
    "currency_of/sweden": ["krone"],
    "currency_of/norway": ["krona"],
    "currency_of/denmark": ["krona"],
    "currency_of/italy": ["lira"],  # until 2002
    "currency_of/france": ["franc"],  # until 2002
    "currency_of/israel": ["pound", "lira"],  # until 1980
    "composer_of/the_four_seasons": ["Pyotr Ilyich Tchaikovsky"],  # The Seasons
    "composer_of/pictures_at_an_exhibition": ["Maurice Ravel"],  # his orchestration
    "composer_of/scheherazade": ["Maurice Ravel"],  # Shéhérazade
    "discoverer_of/radioactivity": ["Marie Curie"],
    "sport_of/michael_jordan": ["baseball"],
    "young_of/wolf": ["cub"],
    "young_of/dog": ["cub"],
    "young_of/lion": ["pup", "kitten"],
    "young_of/tiger": ["pup", "kitten"],
    "young_of/bear": ["pup"],
    "young_of/seal": ["calf", "cub"],
    "young_of/deer": ["calf"],
    "young_of/goose": ["chick"],
    "young_of/swan": ["chick"],
    "young_of/pigeon": ["chick"],
    "roman_name_of/artemis": ["Luna"],
    "roman_name_of/selene": ["Diana"],
}


def folded(text: str) -> str:
    """Returns the text without accents: "Dvořák" becomes "Dvorak"."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@functools.cache
def words(text: str) -> str:
    """Returns the words of a text in lower case without accents, a space around each."""
    return f" {re.sub(r'[^a-z0-9]+', ' ', folded(text).lower())} "


def clash(fact: dict, other: dict) -> bool:
    """Says whether a name of one fact's answer is also found, as whole words, in a name of the other's."""
    ours, theirs = ([words(name) for name in [f["answer"], *f["aliases"]]] for f in (fact, other))
    return any(a in b or b in a for a in ours for b in theirs)


def aliases_of(answer: str, inline: list[str], people: bool) -> list[str]:
    """Returns the other names of an answer, those without accents last."""
    surname = [answer.split()[-1]] if people and " " in answer else []
    names = inline + ALIASES.get(answer, surname)
    # "H₂O" folds to "H2O", the answer itself: the set drops it.
    return [n for n in dict.fromkeys(names + [folded(n) for n in [answer, *names]]) if n != answer]


def read_rows(relation: str) -> list[dict]:
    """Returns the facts of one relation, without wrong answers and neighbors."""
    template, rows = RELATIONS[relation], []
    for pool, block in enumerate(re.split(r"\n\s*\n", template["facts"].strip())):
        for row in re.split(r"[;\n]", block):
            phrase, names = (part.strip() for part in row.split(" = "))
            article, subject = ("the ", phrase[4:]) if phrase.startswith("the ") else ("", phrase)
            answer, *inline = (name.strip() for name in names.split(" / "))
            cloze = template["cloze"] + (" the" if answer.startswith("the ") else "")
            answer = answer.removeprefix("the ")
            question, cloze, *paraphrases = (
                text[0].upper() + text[1:]
                for text in (
                    t.replace("{s}", article + subject) for t in (template["question"], cloze, *template["paraphrases"])
                )
            )
            slug = re.sub(r"[^a-z0-9]+", "_", folded(subject).lower().replace("++", "pp")).strip("_")
            rows.append(
                {
                    "id": f"{relation}/{slug}",
                    "relation": relation,
                    "subject": subject,
                    "question": question,
                    "cloze": cloze,
                    "answer": answer,
                    "aliases": aliases_of(answer, inline, template.get("people", False)),
                    "paraphrases": paraphrases,
                    "pool": pool,
                }
            )
    return rows


def pick(rows: list[dict], i: int, count: int, forward: bool) -> list[dict]:
    """Returns ``count`` facts near row i, same pool first; no answer among them and row i has two rows."""
    around = rows[i + 1 :] + rows[:i]
    if not forward:
        around.reverse()
    chosen: list[dict] = []
    for row in sorted(around, key=lambda row: row["pool"] != rows[i]["pool"]):
        barred = row["answer"] in NOT.get(rows[i]["id"], [])
        if not barred and not any(clash(row, other) for other in [rows[i], *chosen]):
            chosen.append(row)
    if len(chosen) < count:
        raise ValueError(f"{rows[i]['id']}: only {len(chosen)} facts of this relation have another answer")
    return chosen[:count]


def build() -> str:
    """Returns the text of facts.jsonl."""
    lines = []
    for relation in RELATIONS:
        rows = read_rows(relation)
        for i, row in enumerate(rows):
            # Wrong answers look back and neighbors look ahead, so that in a large pool they do not overlap.
            fact = {key: value for key, value in row.items() if key != "pool"} | {
                "wrong_answers": [r["answer"] for r in pick(rows, i, 4, forward=False)],
                "neighbors": [r["id"] for r in pick(rows, i, 3, forward=True)],
                "group": row["subject"],
            }
            lines.append(json.dumps(fact, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tasks" / "facts" / "facts.jsonl"
    out.write_text(build(), encoding="utf-8", newline="\n")
